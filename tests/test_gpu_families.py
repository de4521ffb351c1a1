"""What the families tell ``benchmarks/gpu.py``: that wrong kernels are caught, and what is timed; without a GPU."""

from __future__ import annotations

import json
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from fastssl.benchmarks import (
    cases,
    gpu,
    gpu_augment,
    gpu_clip,
    gpu_family,
    gpu_info_nce,
    gpu_koleo,
    gpu_masking,
    gpu_patch_loss,
    gpu_siglip,
    gpu_sinkhorn_knopp,
    gpu_soft_target,
    gpu_sup_con,
    gpu_unshuffle,
    limits,
    timing,
)
from fastssl.benchmarks.gpu_family import Target
from fastssl.ops import registry
from fastssl.ops.augment import chunked as augment
from fastssl.ops.neighbors import chunked as neighbors
from fastssl.ops.pairwise import chunked as pairwise
from fastssl.ops.sinkhorn import chunked as sinkhorn
from fastssl.ops.soft_target import chunked as soft_target

MODULES = [
    gpu_soft_target, gpu_sinkhorn_knopp, gpu_koleo, gpu_masking, gpu_unshuffle, gpu_patch_loss, gpu_augment, gpu_clip,
    gpu_siglip, gpu_info_nce, gpu_sup_con,
]  # fmt: skip
REHEARSAL = Target("cpu", "chunked", small=True)
CALLS = count()


def problems_of(family, module, monkeypatch, changed, title, dtype="float32"):
    """What verifying says when some functions of the chunked backend are others."""
    backend = SimpleNamespace(**{**vars(module), **changed})
    monkeypatch.setattr(registry, "backend_module", lambda package, name: backend)
    found = gpu_family.load(family).verifications(REHEARSAL)
    number = next(n for n, one in enumerate(found) if title in one.title and one.dtype == dtype)
    return gpu.verify(family, REHEARSAL, number)["problems"]


def forward(change):
    def changed(*arguments, **keywords):
        return change(*soft_target.soft_target_cross_entropy(*arguments, **keywords))

    return {"soft_target_cross_entropy": changed}


def gradient(change):
    def changed(*arguments, inplace=False, **keywords):
        return change(soft_target.soft_target_cross_entropy_grad(*arguments, **keywords), arguments[0])

    return {"soft_target_cross_entropy_grad": changed}


def last_column_unwritten(gradients, students):
    for one in gradients:
        one[..., -1] = float("nan")
    return gradients


@pytest.mark.parametrize(
    ("title", "changed", "says"),
    [
        ("'k': 1000}", {}, None),
        ("'k': 1000}", forward(lambda loss, *others: (loss * (1 + 1e-4), *others)), "loss: "),
        ("'k': 1000}", forward(lambda *all_but, sums=0: (*all_but[:3], all_but[3] * (1 + 1e-5))), "column sums: "),
        ("'k': 1000}", gradient(last_column_unwritten), "gradient: nan"),
        ("'k': 1000}", gradient(lambda g, x: [one * (1 + 1e-7 * next(CALLS)) for one in g]), "two calls differ"),
        ("'apart'", gradient(lambda g, x: g[::-1]), "gradient: "),
        ("'offset': 10000.0", forward(lambda loss, *others: (loss * 1.001, *others)), "loss: "),
        ("in place", gradient(lambda g, x: [torch.zeros_like(one) for one in g]), "gradient: "),
        ("NaN", gradient(lambda g, x: [one.nan_to_num() for one in g]), "gradient: inf"),
    ],
    ids=["right", "loss", "column sums", "unwritten", "race", "order", "offset", "zeros", "dropped NaN"],
)
def test_wrong_soft_target_kernels_are_caught(title, changed, says, monkeypatch):
    found = problems_of("soft_target", soft_target, monkeypatch, changed, title)
    assert (found == []) if says is None else any(problem.startswith(says) for problem in found), found


@pytest.mark.parametrize("wrong", [False, True])
def test_wrong_sinkhorn_kernels_are_caught(wrong, monkeypatch):
    changed = {"potential_logsumexp": lambda *a, **k: sinkhorn.potential_logsumexp(*a, **k) + 1e-3 * wrong}
    assert bool(problems_of("sinkhorn_knopp", sinkhorn, monkeypatch, changed, "around 0")) == wrong


@pytest.mark.parametrize("number", [None, 0, 1, 2, 3])
def test_a_wrong_siglip_is_caught(number, monkeypatch):
    def changed(*arguments, **keywords):
        results = list(pairwise.siglip(*arguments, **keywords))
        if number is not None:
            results[number] = results[number] * (1 + 1e-3)
        return tuple(results)

    found = problems_of("siglip", pairwise, monkeypatch, {"siglip": changed}, "d 128")
    names = ["loss", "gradient of the images", "gradient of the texts", "gradient of the scale"]
    assert (found == []) if number is None else any(problem.startswith(names[number]) for problem in found), found


@pytest.mark.parametrize("wrong", [False, True])
def test_neighbors_in_the_wrong_order_are_caught(wrong, monkeypatch):
    def changed(*arguments, **keywords):
        found = neighbors.nearest_neighbors(*arguments, **keywords)
        return found.flip(1) if wrong else found

    title = "5 neighbours"
    assert bool(problems_of("koleo", neighbors, monkeypatch, {"nearest_neighbors": changed}, title)) == wrong


def scaled(views):
    return [view * 1.02 for view in views]


def mirrored(views):
    return [view.flip(-1) for view in views]


def different_each_time(views):
    return [view + 1e-6 * next(CALLS) for view in views]


@pytest.mark.parametrize(
    ("title", "function", "change", "says"),
    [
        ("everything, HWC", "augment_views", list, None),
        ("SimCLR, list", "augment_views", scaled, "views: "),
        ("SimCLR, CHW", "augment_views", mirrored, "views: "),
        ("1 channels", "augment_views", lambda views: last_column_unwritten(views, None), "views: nan"),
        ("geometry, HWC", "augment_views", different_each_time, "two calls differ"),
        ("records of everything, one size", "view_parameters", torch.Tensor.clone, None),
        ("records of SimCLR, one size", "view_parameters", lambda drawn: drawn * (1 + 1e-6), "records: "),
        ("records of everything, sizes", "view_parameters", lambda drawn: drawn.flip(0), "records: "),
    ],
)
def test_wrong_views_and_records_are_caught(title, function, change, says, monkeypatch):
    def changed(*arguments, **keywords):
        return change(getattr(augment, function)(*arguments, **keywords))

    found = problems_of("augment", augment, monkeypatch, {function: changed}, title)
    assert (found == []) if says is None else any(problem.startswith(says) for problem in found), found


def test_views_of_both_backends_are_verified_and_timed_where_both_are_built(monkeypatch):
    monkeypatch.setattr(gpu_augment.importlib.util, "find_spec", lambda name: object())
    providers = [target.provider for target in gpu_augment.GPU.targets(Target())]
    assert providers == ["fastssl-cuda", "fastssl-triton"] and set(providers) <= set(gpu_augment.GPU.family.providers)
    started = {one.title.split(":")[0] for one in gpu_augment.verifications(Target())}
    assert started == {"cuda", "triton"}
    compiled = {job.arguments[1] for job in gpu.compile_jobs(gpu.Setup(Target(), ["augment"])) if job.required}
    assert compiled >= set(providers)


def test_the_share_of_a_training_step_is_a_line_of_the_report():
    found = gpu_augment.share_of_a_step(REHEARSAL)
    assert found["views_s"]["fastssl-chunked"] > 0 and "% of it" in found["lines"][0]
    outcome = gpu.Outcome("beside", False, "ok", [], found)
    assert found["lines"][0] in gpu.table([outcome])


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rsplit(".", 1)[1])
def test_small_and_large_targets_verify_the_same_list(module):
    small, large = (module.verifications(Target(small=small)) for small in (True, False))
    assert [one.dtype for one in small] == [one.dtype for one in large]
    assert {"float32", "bfloat16", "float16"} <= {one.dtype for one in large}
    assert len({(one.title, one.dtype) for one in large}) == len(large)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rsplit(".", 1)[1])
def test_every_baseline_of_a_timed_case_exists_and_one_is_compiled(module):
    timed = module.cases(Target())
    assert len({case.title for case in timed}) == len(timed)
    named = {name for case in timed for name in module.baselines(case)}
    assert named <= set(module.GPU.family.providers) and any("compiled" in name for name in named)


def test_the_sizes_that_the_bars_are_about_come_first():
    timed = gpu_soft_target.cases(Target())
    sizes = [(case.sizes["K"], case.sizes["B"], case.sizes["S"], case.sizes["T"], case.dtype_name) for case in timed]
    assert sizes[:3] == [(65536, b, 10, 2, "bfloat16") for b in (64, 256, 128)]
    for case in timed[:2]:
        wanted = {"fastssl-inplace", "eager", "compiled-collapsed", "compiled-step"}
        assert wanted <= set(gpu_soft_target.baselines(case))


def test_kernels_compile_for_the_number_of_columns_that_is_timed():
    jobs = gpu.compile_jobs(gpu.Setup(Target(), families=["soft_target"]))
    compiled = {
        (job.arguments[2].sizes["K"], job.arguments[2].dtype_name)
        for job in jobs
        if job.required and job.function is gpu.compile_provider
    }
    assert compiled == {(case.sizes["K"], case.dtype_name) for case in gpu_soft_target.cases(Target())}


def test_families_take_turns_so_that_none_is_left_without_time():
    setup = gpu.Setup(Target())
    names = [job.title.split()[0] for job in gpu.timing_jobs(setup)]
    assert names[: len(setup.families)] == list(setup.families)
    timed = [[*(family := gpu_family.load(name)).cases(Target()), *family.others(Target())] for name in setup.families]
    assert len(names) == sum(map(len, timed))


def test_timing_writes_what_the_plot_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # in the worker: nothing is compiled
    families = {"soft_target": {"forward", "both"}, "sinkhorn_knopp": {"forward"}, "augment": {"forward"}}
    monkeypatch.setattr(timing, "SAMPLES_OF_SHORT_CALLS", 1)
    ceilings = object.__new__(limits.Limits)
    ceilings.products = {name: {"torch.mm": 1e12} for name in cases.DTYPES}
    ceilings.moves = {"torch.copy_": 1e11, limits.Limits.IN_PLACE: 1e11}
    setup = gpu.Setup(REHEARSAL, families=list(families), limits=ceilings)
    assert gpu.run(setup, ["timing"], tmp_path) == 0
    printed = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    for family, passes in families.items():
        rows = json.loads((tmp_path / f"{family}.json").read_text())["rows"]
        assert rows and all(set(row["times"]) == passes for row in rows)
        assert [family, "float32"] in printed
