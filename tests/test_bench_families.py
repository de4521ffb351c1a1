"""What holds for every family of ``fastssl bench``: its gate lets right results pass, and wrong ones not."""

from __future__ import annotations

import argparse
from types import SimpleNamespace

import pytest
import torch

from fastssl import benchmarks
from fastssl.benchmarks import augment_gate, cases, plot, runner, verify
from fastssl.cli import bench

FAMILIES = {name: cases.load(f"fastssl.benchmarks.{name}") for name in benchmarks.FAMILIES}
MASKED = [{"B": 3, "L": 12, "D": 20, "ratio": 0.75}, {"B": 1, "L": 1, "D": 1, "ratio": 0}]
PAIRS = [{"N": 24, "D": 16, "scale": 10.0}, {"N": 1, "D": 2, "scale": 14.0}, {"N": 33, "D": 65, "scale": 100.0}]
# The first of each family is ordinary.
SIZES = {
    "nt_xent": [
        {"N": 24, "D": 16, "temperature": 0.2},
        {"N": 1, "D": 1, "temperature": 0.1},
        {"N": 33, "D": 65, "temperature": 0.1},
    ],
    "info_nce": [
        {"N": 5, "K": 130, "D": 16, "temperature": 0.2},
        {"N": 1, "K": 1, "D": 2, "temperature": 0.1},
        {"N": 70, "K": 33, "D": 65, "temperature": 0.2},
    ],
    "clip": PAIRS,
    "siglip": PAIRS,
    "sup_con": [
        {"N": 24, "D": 16, "classes": 5, "temperature": 0.2},
        {"N": 1, "D": 2, "classes": 1, "temperature": 0.1},
        {"N": 33, "D": 65, "classes": 100, "temperature": 0.1},
    ],
    "soft_target": [
        {"K": 130, "B": 5, "S": 4, "T": 2},
        {"K": 1, "B": 1, "S": 2, "T": 1},
        {"K": 33, "B": 3, "S": 1, "T": 3},
        {"K": 257, "B": 2, "S": 10, "T": 2},
    ],
    "sinkhorn_knopp": [
        {"K": 40, "B": 9, "temperature": 0.05},
        {"K": 1, "B": 1, "temperature": 0.05},
        {"K": 7, "B": 300, "temperature": 0.05},
    ],
    "koleo": [{"N": 24, "D": 16}, {"N": 2, "D": 1}, {"N": 33, "D": 65}],
    "prototype_cross_entropy": [
        {"K": 130, "D": 16, "B": 5, "S": 4, "T": 2},
        {"K": 1, "D": 1, "B": 1, "S": 2, "T": 1},
        {"K": 257, "D": 33, "B": 40, "S": 1, "T": 1},
    ],
    "patch_loss": [
        {"B": 3, "H": 32, "p": 16, "masked": 0.75},
        {"B": 1, "H": 4, "p": 4, "masked": 1},
        {"B": 17, "H": 15, "p": 5, "masked": 0.4},
    ],
    "augment": [
        {"B": 16, "height": 40, "width": 48, "size": 24, "strength": 1, "blur": 0.5, "local": 0, "local_size": 0},
        {"B": 16, "height": 40, "width": 48, "size": 24, "strength": 0, "blur": 0, "local": 2, "local_size": 16},
    ],
    "masking": MASKED,
    "unshuffle": MASKED,
    "mae": [
        {"B": 3, "H": 32, "patch": 8, "depth": 1, "dim": 128, "decoder_depth": 1, "decoder_dim": 16, "decoder_heads": 2}
    ],
    "training": [
        {
            "B": 3, "height": 40, "width": 40, "size": 32, "strength": 0, "blur": 0, "local": 1, "local_size": 16,
            "K": 100, "patch": 8, "depth": 1, "dim": 192,
        },
        {
            "B": 4, "height": 40, "width": 40, "size": 32, "strength": 1, "blur": 0.5, "local": 0, "local_size": 0,
            "K": 0, "patch": 0, "depth": 10, "dim": 0,
        },
    ],
}  # fmt: skip
PROBLEMS = [
    pytest.param(name, sizes, dtype, id=f"{name}-{'-'.join(f'{size:g}' for size in sizes.values())}-{dtype}")
    for name, all_sizes in SIZES.items()
    for number, sizes in enumerate(all_sizes)
    for dtype in ("float32", "bfloat16", "float16")
    if number == 0 or dtype == "float32"
]
# What has to run wherever the tests do.
EVERYWHERE = {"fastssl", "fastssl-inplace", "fastssl-chunked", "eager", "eager-lean", "eager-collapsed", "chunked"}


@pytest.fixture(autouse=True)
def no_garbage_collection(monkeypatch):
    """It frees a large baseline's memory, and takes longer than all else that is small."""
    monkeypatch.setattr(runner, "gc", SimpleNamespace(collect=lambda: 0))


@pytest.fixture(autouse=True)
def few_views(monkeypatch):
    """Libraries that draw their own numbers are slow; `test_bench_augment.py` shows what the gate refuses."""
    monkeypatch.setattr(augment_gate, "VIEWS", 96)


@pytest.mark.parametrize(("name", "sizes", "dtype"), PROBLEMS)
def test_every_provider_passes_the_gate_and_zeros_do_not(name, sizes, dtype):
    family, case = FAMILIES[name], cases.Case.named(sizes, dtype, "cpu")
    sets = [family.inputs(case, seed) for seed in (3, 4)]
    expected = family.truth(case, sets[-1], 0)
    errors = runner.errors_of_baseline(family, case, sets, expected)
    if sizes is SIZES[name][0]:
        assert verify.would_refuse_zeros(expected, errors, case)
    ran = set()
    for provider, about in family.providers.items():
        if about.compiles or case.dtype not in (about.dtypes or (case.dtype,)):  # a compilation takes long
            continue
        row = runner.Row(case, provider)
        runner.prepare(family, row, sets, expected, errors, runner.Options(passes=family.passes))
        if row.status == "ok":
            ran.add(provider)
            assert about.gate or {check.name for check in row.checks} == {want.name for want in expected}
        else:
            assert row.status == "unavailable" and provider not in EVERYWHERE, (provider, row.reason)
    assert ran >= EVERYWHERE & set(family.providers) - {"eager-autocast"}


@pytest.mark.parametrize("name", FAMILIES)
def test_default_options_make_cases_whose_tiny_sizes_are_small(name):
    family = FAMILIES[name]
    parser = argparse.ArgumentParser()
    family.add_arguments(parser)
    problems = family.cases(parser.parse_args([], argparse.Namespace(dtype=["float32", "bfloat16"])), "cpu")
    assert {problem.dtype for problem in problems} == {torch.float32, torch.bfloat16}
    for problem in problems:
        assert set(problem.sizes) == set(SIZES[name][0])
        inputs = family.inputs(cases.Case(family.tiny_sizes(problem.sizes), problem.dtype, "cpu"), 0)
        assert sum(tensor.numel() for tensor in inputs) < 20_000


@pytest.mark.parametrize("name", FAMILIES)
def test_the_names_that_a_family_uses_exist(name):
    family = FAMILIES[name]
    assert family.name == name and {family.subject, family.baseline, *family.optional} <= set(family.providers)
    assert set(family.passes) <= set(cases.TITLES)
    looks = {provider: plot.style(provider) for provider in family.providers}
    assert len(set(looks.values())) == len(looks) and set(looks) <= set(plot.STYLES)


def test_the_families_are_listed(capsys):
    assert bench.main([]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in FAMILIES)


def test_inputs_come_from_their_seed():
    for name, family in FAMILIES.items():
        case = cases.Case(SIZES[name][0], torch.float32, "cpu")
        one, same, other = (family.inputs(case, seed) for seed in (1, 1, 2))
        assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True) if a.ndim)  # numbers are the case's
