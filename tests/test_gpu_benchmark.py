"""The logic of ``benchmarks/gpu.py``, without a GPU: budgets, verdicts, table and files."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from fastssl.benchmarks import cases, gpu, gpu_nt_xent, limits, nt_xent, report, runner, timing
from fastssl.benchmarks.gpu_family import Target
from fastssl.ops.pairwise import chunked

CALLS = count()
REHEARSAL = Target("cpu", "chunked", small=True)
JOBS = """
import os, time

def right(value):
    return {"value": value, "process": os.getpid()}

def wrong():
    return {"problems": ["too large"], "ratio": 3.0}

def broken():
    raise ArithmeticError("no such number")

def dying():
    os._exit(9)

def hanging():
    time.sleep(600)
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """A module whose functions worker processes can import."""
    (tmp_path / "jobs_of_a_test.py").write_text(JOBS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(str(tmp_path))
    import jobs_of_a_test

    return jobs_of_a_test


@pytest.fixture
def ceilings():
    found = object.__new__(limits.Limits)
    found.products = {"float32": {"torch.mm": 1e12}, "bfloat16": {"torch.mm": 2e12}}
    found.moves = {"torch.copy_": 1e11}
    return found


def outcome(status, required=True, **result):
    return gpu.Outcome("a job", required, status, [] if status == "ok" else ["a reason"], result)


def test_a_job_that_fails_costs_no_other_job(jobs):
    said = []
    planned = [
        gpu.Job("first", jobs.right, (1,)),
        gpu.Job("wrong", jobs.wrong, ()),
        gpu.Job("broken", jobs.broken, ()),
        gpu.Job("second", jobs.right, (2,)),
        gpu.Job("dying", jobs.dying, ()),
        gpu.Job("third", jobs.right, (3,)),
    ]
    first, wrong, broken, second, dying, third = gpu.run_jobs(planned, gpu.Deadline(300), say=said.append)
    assert [one.status for one in (first, second, third)] == ["ok"] * 3
    assert [one.result["value"] for one in (first, second, third)] == [1, 2, 3]
    assert first.result["process"] == second.result["process"] != third.result["process"]
    assert (wrong.status, wrong.problems, wrong.result["ratio"]) == ("wrong", ["too large"], 3.0)
    assert (broken.status, broken.problems) == ("failed", ["ArithmeticError: no such number"])
    assert dying.status == "failed" and "status 9" in dying.problems[0]
    assert [line.split(":")[0] for line in said] == ["WRONG wrong", "FAILED broken", "FAILED dying"]


def test_jobs_are_stopped_when_the_time_is_up_and_count_as_missing(jobs):
    start = time.monotonic()
    planned = [gpu.Job("hanging", jobs.hanging, ()), gpu.Job("never started", jobs.right, (1,))]
    outcomes = gpu.run_jobs(planned, gpu.Deadline(2), say=lambda line: None)
    assert time.monotonic() - start < 60
    assert [one.status for one in outcomes] == ["missing", "missing"]
    assert outcomes[0].problems == ["cut off at the end of the section"] and outcomes[1].problems == []


def test_a_job_that_hangs_is_stopped_at_its_own_limit(jobs):
    planned = [gpu.Job("hanging", jobs.hanging, ())]
    (stuck,) = gpu.run_jobs(planned, gpu.Deadline(300), limit=1.0, workers=3, say=lambda line: None)
    assert stuck.status == "failed" and stuck.problems == ["took more than 1 s"]


@pytest.mark.parametrize(
    ("outcomes", "complete", "count"),
    [
        (["ok", "ok"], True, 0),
        (["ok", "wrong", "failed", "missing"], True, 3),
        (["ok", "wrong", "failed", "missing"], False, 2),
        (["missing", "missing"], False, 1),  # nothing at all is no success
        ([], True, 1),
    ],
)
def test_what_makes_a_section_fail(outcomes, complete, count):
    assert gpu.failures([outcome(status) for status in outcomes], complete) == count


def test_a_baseline_that_does_not_compile_does_not_fail_a_section():
    assert (
        gpu.failures([outcome("ok"), outcome("failed", required=False), outcome("missing", required=False)], True) == 0
    )


def test_the_budgets_are_less_than_nine_minutes():
    assert sum(section.seconds for section in gpu.SECTIONS.values()) <= gpu.TOTAL_SECONDS < 9 * 60
    assert gpu.SECTIONS["compile"].complete and gpu.SECTIONS["verify"].complete


# --- Verification


def with_backend(monkeypatch, **changed):
    """The chunked backend with some functions changed, in the place of the kernels."""
    functions = {name: getattr(chunked, name) for name in ("pairwise_logsumexp", "pairwise_logsumexp_grad")}
    module = SimpleNamespace(**functions | changed)
    monkeypatch.setattr(gpu_nt_xent, "_module", lambda target: module)


def number_of(title, dtype="float32"):
    found = gpu_nt_xent.verifications(REHEARSAL)
    return next(n for n, one in enumerate(found) if title in one.title and one.dtype == dtype)


def of_gradient(change):
    def changed(*arguments, **keywords):
        gradient, scale = chunked.pairwise_logsumexp_grad(*arguments, **keywords)
        return change(gradient), scale

    return {"pairwise_logsumexp_grad": changed}


def of_log_sums(change):
    def changed(*arguments, **keywords):
        log_sum, positive = chunked.pairwise_logsumexp(*arguments, **keywords)
        return change(log_sum), positive

    return {"pairwise_logsumexp": changed}


def last_row_unwritten(gradient):
    out = torch.empty(gradient.shape, dtype=gradient.dtype)
    out[:-1] = gradient[:-1]
    return out


@pytest.mark.parametrize("title", ["'pair', 'exclude_self'", "'key'", "a NaN row", "logits of -10240"])
def test_right_kernels_pass(title, monkeypatch):
    with_backend(monkeypatch)
    result = gpu.verify("nt_xent", REHEARSAL, number_of(title))
    assert result["problems"] == [] and max(result["ratios"].values()) <= 1


@pytest.mark.parametrize(
    ("title", "changed", "says"),
    [
        ("'pair', 'exclude_self'", of_gradient(torch.zeros_like), "gradient"),
        ("'pair', 'exclude_self'", of_gradient(last_row_unwritten), "gradient: nan of what is allowed"),
        ("'pair', 'exclude_self'", of_gradient(lambda g: g * (1 + 1e-6 * next(CALLS))), "two calls differ"),
        ("'key'", of_log_sums(lambda lse: lse + 1e-3), "log_sum"),
        ("a NaN row", of_log_sums(lambda lse: lse.nan_to_num(0.0)), "log_sum: inf"),
        ("logits of 10240", of_log_sums(lambda lse: lse * torch.inf), "log_sum: inf"),
    ],
    ids=["zeros", "unwritten", "race", "biased", "dropped NaN", "overflow"],
)
def test_wrong_kernels_do_not(title, changed, says, monkeypatch):
    with_backend(monkeypatch, **changed)
    problems = gpu.verify("nt_xent", REHEARSAL, number_of(title))["problems"]
    assert any(says in problem for problem in problems), problems


def fused(change):
    """The chunked backend's ``nt_xent`` with its results (loss, dz0, dz1, dscale) changed."""
    right = chunked.nt_xent
    return lambda *arguments, **keywords: change(*right(*arguments, **keywords), keywords["gradient"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_right_fused_operator_passes(dtype):
    result = gpu.verify("nt_xent", REHEARSAL, number_of("nt_xent, d 24", dtype))
    assert result["problems"] == [] and 0 < max(result["ratios"].values()) <= 1
    names = {"loss", "gradient of z0", "gradient of z1", "gradient of the scale", "loss without gradients"}
    assert set(result["ratios"]) == names


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda loss, dz0, dz1, ds, gradient: (loss * 1.1, dz0, dz1, ds), "loss: "),
        (lambda loss, dz0, dz1, ds, gradient: (loss if gradient else loss * 1.1, dz0, dz1, ds), "loss without grad"),
        (lambda loss, dz0, dz1, ds, gradient: (loss, dz0 * 0, dz1, ds), "gradient of z0"),
        (lambda loss, dz0, dz1, ds, gradient: (loss, dz0, dz0, ds), "gradient of z1"),
        (lambda loss, dz0, dz1, ds, gradient: (loss, dz0, dz1, 2 * ds), "gradient of the scale"),
    ],
    ids=["loss", "loss alone", "zeros", "other view", "scale counted twice"],
)
def test_a_wrong_fused_operator_does_not(change, says, dtype, monkeypatch):
    monkeypatch.setattr(chunked, "nt_xent", fused(change))
    problems = gpu.verify("nt_xent", REHEARSAL, number_of("nt_xent, d 24", dtype))["problems"]
    assert any(problem.startswith(says) for problem in problems), problems


def test_small_and_large_targets_verify_the_same_list():
    small, large = (gpu_nt_xent.verifications(Target(small=small)) for small in (True, False))
    assert len(small) == len(large) and [one.dtype for one in small] == [one.dtype for one in large]
    assert {one.dtype for one in large} == set(cases.DTYPES)


# --- Timing


def test_the_sizes_that_the_bars_are_about_come_first():
    timed = gpu_nt_xent.cases(Target())
    assert len({case.title for case in timed}) == len(timed)
    assert [(case.sizes["N"], case.sizes["D"], case.dtype_name) for case in timed[:3]] == [
        (16384, d, "bfloat16") for d in (128, 256, 512)
    ]
    assert {case.dtype_name for case in timed} == set(cases.DTYPES)
    for case in timed[:3]:
        assert {"eager", "compiled", "compiled-symmetric", "chunked", "chunked-compiled"} <= set(
            gpu_nt_xent.baselines(case)
        )
    largest = next(case for case in timed if case.sizes["N"] == 262144)
    assert "eager" in gpu_nt_xent.baselines(largest)
    assert nt_xent.PROVIDERS["eager"].bytes_needed(largest) > 1e12  # refused by its estimate, which is then said


def test_compiling_covers_every_provider_that_compiles_and_each_kernel_once():
    jobs = gpu.compile_jobs(gpu.Setup(Target(), families=["nt_xent"]))
    assert len({(job.title, job.function) for job in jobs}) == len(jobs)
    timed = gpu_nt_xent.cases(Target())
    compiled = [(case.title, name) for case in timed for name in gpu_nt_xent.baselines(case) if "compiled" in name]
    found = [(job.arguments[2].title, job.arguments[1]) for job in jobs if not job.required]
    assert sorted(found) == sorted(compiled) and len(found) > 10
    tiny = [job.arguments[2] for job in jobs if job.required and job.function is gpu.compile_provider]
    assert {(case.sizes["D"], case.dtype_name) for case in tiny} == {
        (case.sizes["D"], case.dtype_name) for case in timed
    }
    assert all(case.sizes["N"] <= 16 for case in tiny)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(timing, "SAMPLES_OF_SHORT_CALLS", 1)
    return runner.Options(rounds=1, budget=0.01, memory=False)


def with_provider(monkeypatch, name, function):
    provider = cases.Provider(lambda case: lambda z0, z1: function(z0, z1, case.sizes["temperature"]))
    family = dataclasses.replace(nt_xent.FAMILY, providers={**nt_xent.PROVIDERS, name: provider})
    monkeypatch.setattr(gpu_nt_xent, "GPU", dataclasses.replace(gpu_nt_xent.GPU, family=family))


def biased(z0, z1, temperature):
    return nt_xent.eager(z0, z1, temperature) * 1.01


def failing(z0, z1, temperature):
    raise RuntimeError("out of registers")


@pytest.mark.parametrize(
    ("provider", "function", "says"),
    [
        ("chunked", nt_xent.eager, None),
        ("chunked", failing, None),  # a baseline may fail
        ("chunked", biased, "chunked wrong: loss is off by"),  # wrong it may not be
        ("fastssl-chunked", failing, "fastssl-chunked failed: RuntimeError: out of registers"),
        ("fastssl-chunked", biased, "fastssl-chunked wrong: loss is off by"),
    ],
)
def test_verdicts_while_timing(provider, function, says, quick, ceilings, monkeypatch):
    with_provider(monkeypatch, provider, function)
    case = gpu_nt_xent.cases(REHEARSAL)[0]
    result = gpu.time_case("nt_xent", REHEARSAL, case, quick, ceilings)
    assert [row["provider"] for row in result["rows"]] == ["fastssl-chunked", "eager", "chunked"]
    assert len(result["problems"]) == (says is not None)
    assert says is None or result["problems"][0].startswith(says)


def row(provider, both=None, status="ok", **fields):
    times = {} if both is None else {which: {"median_s": both} for which in ("forward", "both")}
    shares = dict.fromkeys(times, 0.5)
    sizes = {"N": 16384, "D": 128, "temperature": 0.1}
    about = {"sizes": sizes, "dtype": "bfloat16", "provider": provider, "status": status, "reason": "", "times": times}
    return {**about, "share_of_limit": shares, "rate": {}, "peak_extra_bytes": None, **fields}


def test_the_table_compares_with_the_best_compiled_form_and_says_what_has_no_time():
    rows = [
        row("fastssl-triton", 0.002, peak_extra_bytes=25_000_000),
        row("eager", 0.03), row("eager-autocast", 0.02), row("compiled", 0.011), row("compiled-autocast", 0.008),
        row("chunked", status="unavailable", reason="needs about 900.0 GB, 140.0 GB are available"),
    ]  # fmt: skip
    floors = {"forward": 2e-4, "both": 0.001}
    found = {"family": "nt_xent", "provider": "fastssl-triton", "floor_s": floors, "rows": rows}
    outcomes = [outcome("ok", **found), gpu.Outcome("a later case", True)]
    header, _, line, *rest = gpu.table(outcomes)
    assert len(header) == len(line)
    assert line.split() == [
        "nt_xent", "bfloat16", "N=16384", "D=128",
        "2", "50%", "2", "50%", "1", "20", "8", "-", "4.0x", "25.0",
    ]  # fmt: skip
    assert "a job: chunked unavailable, needs about 900.0 GB, 140.0 GB are available" in rest
    assert "a later case: missing, no time was left" in rest


def test_verifying_and_timing_write_what_the_plot_reads(tmp_path, ceilings, capsys, monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # in the workers: nothing is compiled
    setup = gpu.Setup(REHEARSAL, families=["nt_xent"], limits=ceilings)
    assert gpu.run(setup, ["verify", "timing"], tmp_path / "out", command="a command") == 0
    written = {path.name: json.loads(path.read_text()) for path in (tmp_path / "out").iterdir()}
    assert set(written) == {"verify.json", "timing.json", "nt_xent.json"}
    for name in ("verify", "timing"):
        section = written[f"{name}.json"]
        assert (section["section"], section["command"], section["failed"]) == (name, "a command", 0)
        assert all(job["status"] == "ok" for job in section["jobs"])
        assert {"versions", "commit", "machine"} <= set(section["environment"])
    assert len(written["verify.json"]["jobs"]) == len(gpu_nt_xent.verifications(REHEARSAL))
    rows = written["nt_xent.json"]["rows"]
    assert len(rows) >= 6 and all(set(row["times"]) == {"forward", "both"} for row in rows)
    assert report.load(tmp_path / "out" / "nt_xent.json")["subject"] == "fastssl-chunked"
    printed = capsys.readouterr().out
    assert printed.count("nt_xent  bfloat16") == 1 and "timing" in printed.splitlines()[-1]


def test_without_time_everything_is_missing_and_the_run_fails(tmp_path, ceilings):
    setup = gpu.Setup(REHEARSAL, families=["nt_xent"], limits=ceilings)
    assert gpu.run(setup, ["verify"], tmp_path, budget=1e-6) == 1
    section = json.loads((tmp_path / "verify.json").read_text())
    assert {job["status"] for job in section["jobs"]} == {"missing"}
    assert section["failed"] == len(section["jobs"]) > 0


def test_without_a_gpu_the_command_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err
