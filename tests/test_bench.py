"""``fastssl bench``: it refuses wrong results, measures what it says, and writes down how."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
import torch

from fastssl import benchmarks
from fastssl.benchmarks import cases, limits, memory, nt_xent, report, runner, timing, verify
from fastssl.cli import bench

CASE = cases.Case({"N": 24, "D": 16, "temperature": 0.2}, torch.float32, "cpu")
QUICK = runner.Options(rounds=3, budget=0.01, memory=False)


@pytest.fixture(scope="module")
def ceilings():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(limits.PRODUCT_SIZE, "cpu", 128)
        patch.setitem(limits.COPY_BYTES, "cpu", 1 << 20)
        yield limits.Limits("cpu", [torch.float32, torch.bfloat16], budget=0.01)


def family_with(**providers):
    return dataclasses.replace(nt_xent.FAMILY, providers={**nt_xent.PROVIDERS, **providers})


def built(function):
    """A provider from (z0, z1, temperature) -> loss."""
    return cases.Provider(lambda case: lambda z0, z1: function(z0, z1, case.sizes["temperature"]))


class ZeroGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z0, z1, temperature):
        return nt_xent.eager(z0, z1, temperature)

    @staticmethod
    def backward(ctx, d_loss):
        zeros = torch.zeros(int(CASE.sizes["N"]), int(CASE.sizes["D"]))
        return zeros, zeros, None


def biased(z0, z1, temperature):
    return nt_xent.eager(z0, z1, temperature) * 1.001


def detached(z0, z1, temperature):
    return nt_xent.eager(z0, z1.detach(), temperature)


def remembering():
    """Right on the first input, and on that one only."""
    first = []

    def function(z0, z1, temperature):
        first.append((z0, z1))
        return nt_xent.eager(*first[0], temperature)

    return function


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (biased, "loss is off by"),
        (ZeroGradient.apply, "gradient of z0 is off by"),
        (detached, "gradient of z1: nothing"),
        (remembering(), "loss is off by"),
        (lambda z0, z1, t: nt_xent.eager(z0, z1, t) + torch.nan, "loss is not finite"),
    ],
    ids=["biased", "zero gradient", "missing gradient", "cached", "nan"],
)
def test_a_wrong_result_is_refused_and_its_time_is_not_shown(function, says, ceilings):
    family = family_with(wrong=built(function))
    rows, _ = runner.run_case(family, CASE, ["eager", "wrong"], QUICK, ceilings)
    right, wrong = rows
    assert right.status == "ok" and set(right.timings) == {"forward", "both"}
    assert wrong.status == "wrong" and not wrong.timings and says in wrong.reason
    line = report.table(rows, "eager", QUICK.passes).splitlines()[-1]
    assert line.split()[:3] == ["wrong", "-", "-"] and "WRONG: " in line and says in line
    assert wrong.to_json()["times"] == {}
    json.dumps(wrong.to_json(), allow_nan=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_provider_passes_the_gate_and_zeros_do_not(dtype):
    case = dataclasses.replace(CASE, dtype=dtype)
    inputs = nt_xent.inputs(case, seed=3)
    expected = nt_xent.truth(case, inputs)
    eager = verify.errors(cases.outputs(nt_xent.PROVIDERS["eager"].build(case), inputs), expected)
    assert verify.would_refuse_zeros(expected, eager, dtype)
    for name in ("fastssl", "fastssl-chunked", "eager-lean", "chunked"):
        results = cases.outputs(nt_xent.PROVIDERS[name].build(case), inputs)
        for check in verify.check(results, expected, eager, dtype):
            assert not check.reason, (name, check)


@pytest.mark.parametrize("temperature", [0.5, 0.01])
def test_the_truth_is_eager_pytorch_in_float64(temperature):
    case = cases.Case({"N": 9, "D": 7, "temperature": temperature}, torch.float32, "cpu")
    inputs = nt_xent.inputs(case, seed=1)
    wide = tuple(view.detach().double().requires_grad_() for view in inputs)
    results = cases.outputs(lambda z0, z1: nt_xent.eager(z0, z1, temperature), wide)
    for result, want in zip(results, nt_xent.truth(case, inputs), strict=True):
        torch.testing.assert_close(want.value, result, rtol=1e-10, atol=1e-13)
        assert (want.terms >= want.value.abs() * (1 - 1e-9)).all()


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_the_chunked_baseline_is_right_across_block_borders(temperature):
    case = cases.Case({"N": 11, "D": 5, "temperature": temperature}, torch.float32, "cpu")
    inputs = nt_xent.inputs(case, seed=2)

    def in_blocks_of_four(z0, z1):
        return nt_xent._Chunked.apply(torch.nn.functional.normalize(torch.cat([z0, z1]), dim=1), 1 / temperature, 4)

    expected = nt_xent.truth(case, inputs)
    for check in verify.check(cases.outputs(in_blocks_of_four, inputs), expected, [0.0] * 3, case.dtype):
        assert not check.reason


def test_what_cannot_run_is_a_row_that_says_why(ceilings):
    def missing(case):
        import a_library_that_nobody_has  # noqa: F401

    def does_not_compile(case):
        raise RuntimeError("no such instruction\nand a long trace")

    family = family_with(
        missing=cases.Provider(missing),
        broken=cases.Provider(does_not_compile),
        huge=cases.Provider(lambda case: biased, bytes_needed=lambda case: 1e18),
    )
    names = ["missing", "broken", "huge", "eager-autocast"]
    rows, _ = runner.run_case(family, CASE, names, QUICK, ceilings)
    assert [(row.provider, row.status) for row in rows] == [
        ("missing", "unavailable"),
        ("broken", "failed"),
        ("huge", "unavailable"),
    ]  # autocast to float32 is no competitor
    assert "a_library_that_nobody_has" in rows[0].reason
    assert rows[1].reason == "RuntimeError: no such instruction"
    assert rows[2].reason.startswith("needs about 1000000000.0 GB")


def test_pytorch_metric_learning_is_not_tried_where_its_cube_is_too_large():
    pytest.importorskip("pytorch_metric_learning")
    with pytest.raises(cases.Unavailable, match=r"O\(N\^3\)"):
        nt_xent.PROVIDERS["pytorch-metric-learning"].build(dataclasses.replace(CASE, sizes={"N": 512}))


KNOWN_MEMORY = """
import torch
from fastssl.benchmarks.cases import Family, Provider

def hold(megabytes):
    def build(case):
        def function(x):
            torch.ones(megabytes << 20, dtype=torch.uint8)  # freed at once: only the peak shows it
            return x.sum()
        return function
    return Provider(build)

FAMILY = Family(
    name="known", module=__name__, subject="", baseline="", add_arguments=None, cases=None, truth=None, work=None,
    work_model="", inputs=lambda case, seed: (torch.ones(4, requires_grad=True),), tiny_sizes=lambda sizes: sizes,
    providers={"64 MB": hold(64), "nothing": hold(0)},
)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(("provider", "size"), [("64 MB", 64 << 20), ("nothing", 0)])
def test_peak_memory_sees_an_allocation_that_does_not_last(provider, size, tmp_path, monkeypatch):
    (tmp_path / "known_memory.py").write_text(KNOWN_MEMORY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(str(tmp_path))
    measured = memory.peak_extra_bytes(cases.load("known_memory"), provider, CASE)
    assert abs(measured - size) < 2 << 20  # pages that Python still had free, or takes for itself


def test_competitors_take_turns_in_rotating_order_and_preparation_is_not_timed():
    turns = []

    def task(name):
        def run(call):
            if not turns or turns[-1] != name:
                turns.append(name)

        return timing.Task(run, prepare=lambda call: [0.0] * 10000)

    timings = timing.interleave({name: task(name) for name in "abc"}, rounds=3, budget=1e-6)
    assert turns == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert all(len(one.samples) >= 3 for one in timings.values())
    one = timing.Timing([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (one.median, one.quantile(0.25), one.quantile(0.75)) == (3.0, 2.0, 4.0)


def test_calls_rotate_over_several_inputs_and_gradients_do_not_accumulate(ceilings):
    seen, accumulated = set(), []

    def watching(z0, z1, temperature):
        seen.add(z0.data_ptr())
        accumulated.append(z0.grad is not None and torch.is_grad_enabled())
        return nt_xent.eager(z0, z1, temperature)

    family = family_with(watching=built(watching))
    runner.run_case(family, CASE, ["watching"], QUICK, ceilings)
    assert len(seen) == runner.INPUT_SETS and not any(accumulated)


def test_limits_and_shares(ceilings):
    assert set(ceilings.products) == {"float32", "bfloat16"} and ceilings.copy > 0
    at_the_limit = ceilings.product(torch.float32)
    assert ceilings.share(cases.Work(at_the_limit, 0), 2.0, torch.float32) == pytest.approx(0.5)
    assert ceilings.share(cases.Work(0, ceilings.copy), 4.0, torch.float32) == pytest.approx(0.25)


def test_a_baseline_that_wins_is_named():
    def row(provider, seconds):
        return runner.Row(CASE, provider, timings={"both": timing.Timing([seconds])}, share={"both": 0.1})

    rows = [row("fastssl", 2.0), row("compiled", 1.0), row("eager", 3.0), row("fastssl-chunked", 0.5)]
    (sentence,) = report.beaten(rows, "fastssl", ["both"])
    assert "forward + backward: compiled is 2.00x as fast as fastssl" in sentence
    lines = report.table(rows, "fastssl", ["both"]).splitlines()
    assert ["FASTER" in line for line in lines[2:]] == [False, True, False, True]


def test_table_and_json_from_the_command_line(tmp_path, capsys, ceilings, monkeypatch):
    monkeypatch.setattr(limits, "Limits", lambda device, dtypes: ceilings)
    path = tmp_path / "results" / "nt_xent.json"
    command = (
        "nt_xent --n 8 24 --dim 16 --dtype float32 bfloat16 --device cpu --providers fastssl eager eager-autocast "
        f"--rounds 3 --budget 0.01 --no-memory --json {path}"
    )
    assert bench.main(command.split()) == 0
    printed = capsys.readouterr().out
    assert "matrix product float32" in printed and "forward + backward ms" in printed
    assert printed.count("\nfastssl ") == 4 and printed.count("\neager-autocast ") == 2
    document = json.loads(path.read_text())
    assert set(document) == {
        "schema", "family", "command", "options", "environment", "limits", "work_model", "others_share_of_cpu", "rows",
    }  # fmt: skip
    assert document["schema"] == 1 and document["command"] == f"fastssl bench {command}"
    assert set(document["environment"]) >= {"versions", "commit", "machine", "threads", "allocator", "extension"}
    assert len(document["rows"]) == 10
    for row in document["rows"]:
        assert row["status"] == "ok" and row["device"] == "cpu"
        assert set(row["sizes"]) == {"N", "D", "temperature"} and row["dtype"] in ("float32", "bfloat16")
        assert {check["output"] for check in row["checks"]} == {"loss", "gradient of z0", "gradient of z1"}
        assert set(row["times"]) == {"forward", "both"} == set(row["share_of_limit"])
        for times in row["times"].values():
            assert len(times["samples_s"]) >= 3 and times["q25_s"] <= times["median_s"] <= times["q75_s"]


def test_exit_code_is_1_only_when_our_own_result_is_wrong(monkeypatch, ceilings, capsys):
    monkeypatch.setattr(limits, "Limits", lambda device, dtypes: ceilings)
    arguments = "nt_xent --n 16 --dim 8 --device cpu --rounds 1 --budget 0.01 --no-memory --providers fastssl lightly"
    for name, code in (("lightly", 0), ("fastssl", 1)):
        monkeypatch.setattr(nt_xent, "FAMILY", family_with(**{name: built(biased)}))
        assert bench.main(arguments.split()) == code
        captured = capsys.readouterr()
        assert "WRONG: loss is off by" in captured.out
        assert ("fastssl wrong" in captured.err) == (code == 1)


def test_the_families_are_listed(capsys):
    assert bench.main([]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in benchmarks.FAMILIES)
    for name in benchmarks.FAMILIES:
        family = cases.load(f"fastssl.benchmarks.{name}")
        assert family.name == name and family.subject in family.providers and family.baseline in family.providers


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("nothing", "the family must be one of nt_xent, got 'nothing'"),
        ("nt_xent --n 0", "--n must be above 0, got 0"),
        ("nt_xent --providers none", "--providers: must be among fastssl"),
        ("nt_xent --dtype int8", "invalid choice: 'int8'"),
        ("nt_xent --budget -1", "must be above 0, got -1"),
        ("nt_xent --device cuda", "--device cuda: PyTorch sees no CUDA device"),
    ],
)
def test_a_wrong_command_line_is_named(command, says, capsys):
    if "cuda" in command and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert bench.main(command.split()) == bench.USAGE
    assert says in capsys.readouterr().err


def test_the_allocator_is_chosen_through_the_environment():
    before = {"PATH": "/bin", "MALLOC_ARENA_MAX": "1"}
    pooled = bench.allocator_environment("pooled", before)
    assert pooled == {"PATH": "/bin", **bench.POOLED}
    assert bench.allocator_environment("pooled", pooled) == pooled  # the process started again stops here
    assert bench.allocator_environment("default", pooled) == {"PATH": "/bin"}
