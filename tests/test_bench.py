"""``fastssl bench``: it refuses wrong results, measures what it says, and writes down how."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from fastssl import benchmarks
from fastssl.benchmarks import cases, limits, memory, nt_xent, runner, timing, worker
from fastssl.cli import bench

CASE = cases.Case({"N": 24, "D": 16, "temperature": 0.2}, torch.float32, "cpu")
SAMPLES_OF_SHORT_CALLS = timing.SAMPLES_OF_SHORT_CALLS  # the fixtures below reduce it
QUICK = runner.Options(rounds=3, budget=0.01, memory=False)


@pytest.fixture(scope="module")
def ceilings():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(limits.PRODUCT_SIZE, "cpu", 128)
        patch.setitem(limits.COPY_BYTES, "cpu", 1 << 20)
        patch.setattr(timing, "SAMPLES_OF_SHORT_CALLS", 1)
        return limits.Limits("cpu", ["float32", "bfloat16"], budget=0.01)


@pytest.fixture(autouse=True)
def little_to_do(monkeypatch):
    monkeypatch.setattr(timing, "SAMPLES_OF_SHORT_CALLS", 1)
    # It frees a large baseline's memory, and takes longer than all else that is small.
    monkeypatch.setattr(runner, "gc", SimpleNamespace(collect=lambda: 0))


def measured_before(monkeypatch, ceilings):
    """``Limits`` that takes no time: what the fixture measured."""
    monkeypatch.setattr(limits.Limits, "_measure", lambda self, *arguments: vars(self).update(vars(ceilings)))


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
    assert right.status == "ok" and set(right.timings) == {"forward", "backward", "both"}
    assert wrong.status == "wrong" and not wrong.timings and says in wrong.reason
    assert wrong.to_json()["times"] == {}
    json.dumps(wrong.to_json(), allow_nan=False)


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
    assert rows[2].reason.startswith("needs about 1000000000.0 GB") and rows[2].to_json()["bytes_needed"] == 1e18


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


@pytest.fixture
def clock(monkeypatch):
    """Seconds pass only where a test says so."""

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    fake = Clock()
    monkeypatch.setattr(timing, "time", fake)
    return fake


def test_each_pass_is_timed_without_the_others(ceilings, clock):
    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z0, z1, temperature):
            clock.now += 1.0
            with torch.enable_grad():
                views = z0.detach().requires_grad_(), z1.detach().requires_grad_()
                loss = nt_xent.eager(*views, temperature)
            ctx.save_for_backward(*torch.autograd.grad(loss, views))
            return loss.detach()

        @staticmethod
        def backward(ctx, d_loss):
            clock.now += 2.0
            return *(d_loss * gradient for gradient in ctx.saved_tensors), None

    family = family_with(slow=built(Slow.apply))
    (row,), _ = runner.run_case(
        family, CASE, ["slow"], dataclasses.replace(QUICK, passes=tuple(cases.PASSES)), ceilings
    )
    assert row.status == "ok"
    assert {name: set(one.samples) for name, one in row.timings.items()} == {
        "forward": {1.0}, "backward": {2.0}, "both": {3.0},
    }  # fmt: skip


def test_short_calls_get_enough_samples_and_long_ones_keep_to_the_budget(clock, monkeypatch):
    monkeypatch.setattr(timing, "SAMPLES_OF_SHORT_CALLS", SAMPLES_OF_SHORT_CALLS)

    def lasting(seconds):
        def run(call):
            clock.now += seconds

        return timing.Task(run)

    for rounds in (3, 7):
        timings = timing.interleave(
            {"short": lasting(0.9e-3), "long": lasting(0.05), "longest": lasting(9.0)}, rounds=rounds, budget=0.3
        )
        assert len(timings["short"].samples) >= 200
        assert 6 <= len(timings["long"].samples) <= 9 and len(timings["longest"].samples) == timing.MIN_ROUNDS


def test_median_and_quartiles():
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
    at_the_limit = ceilings.product("float32")
    assert ceilings.share(cases.Work(at_the_limit, 0), 2.0, "float32") == pytest.approx(0.5)
    assert ceilings.share(cases.Work(0, ceilings.copy), 4.0, "float32") == pytest.approx(0.25)
    assert ceilings.floor(cases.Work(2 * at_the_limit, ceilings.copy), "float32") == pytest.approx(2.0)


def test_tf32_is_a_dtype_of_its_own():
    before = torch.get_float32_matmul_precision()
    case = cases.Case.named({"N": 8, "D": 4}, "tf32", "cuda")
    assert (case.dtype, case.dtype_name, case.eps) == (torch.float32, "tf32", 2.0**-10)
    assert cases.Case.from_json(case.to_json()) == case
    with pytest.raises(KeyError), cases.precision("tf32") as dtype:
        assert dtype == torch.float32 and torch.get_float32_matmul_precision() == "high"
        raise KeyError
    assert torch.get_float32_matmul_precision() == before
    for name in ("float32", "bfloat16", "float16"):
        plain = cases.Case.named({"N": 8}, name, "cpu")
        assert (plain.dtype_name, plain.eps) == (name, torch.finfo(plain.dtype).eps)


def test_table_and_json_from_the_command_line(tmp_path, capsys, ceilings, monkeypatch):
    measured_before(monkeypatch, ceilings)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    path = tmp_path / "results" / "nt_xent.json"
    command = (
        "nt_xent --n 8 24 --dim 16 --dtype float32 bfloat16 --device cpu --providers fastssl eager eager-autocast "
        f"--rounds 3 --budget 0.01 --no-memory --allocator environment --json {path}"
    )
    assert bench.main(command.split()) == 0
    printed = capsys.readouterr().out
    assert "matrix product float32" in printed
    # (the version stands in the first line)
    tables = printed[printed.index("N=8") :]
    assert tables.count("\nfastssl ") == 4 and tables.count("\neager-autocast ") == 2
    document = json.loads(path.read_text())
    assert set(document) >= {
        "schema", "family", "command", "options", "environment", "limits", "work_model", "others_share_of_cpu", "rows",
    }  # fmt: skip
    assert document["command"] == f"fastssl bench {command}"
    assert document["environment"]["allocator"]["environment"]["MALLOC_ARENA_MAX"] == "2"
    assert set(document["environment"]) >= {"versions", "commit", "machine", "threads", "allocator", "extension"}
    assert len(document["rows"]) == 10
    for row in document["rows"]:
        assert row["status"] == "ok" and row["device"] == "cpu" and row["allocator"] == "environment"
        assert set(row["sizes"]) == {"N", "D", "temperature"} and row["dtype"] in ("float32", "bfloat16")
        assert {check["output"] for check in row["checks"]} == {"loss", "gradient of z0", "gradient of z1"}
        assert set(row["times"]) == {"forward", "backward", "both"} == set(row["share_of_limit"])
        for times in row["times"].values():
            assert len(times["samples_s"]) >= 3 and times["q25_s"] <= times["median_s"] <= times["q75_s"]


def test_exit_code_is_1_only_when_our_own_result_is_wrong(monkeypatch, ceilings, capsys):
    measured_before(monkeypatch, ceilings)
    arguments = (
        "nt_xent --n 16 --dim 8 --device cpu --rounds 1 --budget 0.01 --no-memory --allocator environment "
        "--pass both --providers fastssl lightly"
    )
    for name, code in (("lightly", 0), ("fastssl", 1)):
        monkeypatch.setattr(nt_xent, "FAMILY", family_with(**{name: built(biased)}))
        assert bench.main(arguments.split()) == code
        captured = capsys.readouterr()
        assert "loss is off by" in captured.out
        assert ("fastssl wrong" in captured.err) == (code == 1)


# A family whose provider tells what its process sees, ends it (N = 6), or is wrong in one of them (N = 7).
CHILDREN = """
import dataclasses, os
import torch
from fastssl.benchmarks import nt_xent
from fastssl.benchmarks.cases import Provider

def build(case):
    if case.sizes["N"] == 6:
        os._exit(7)
    if case.sizes["N"] == 7 and "MALLOC_TOP_PAD_" in os.environ:
        return lambda z0, z1: 2 * nt_xent.eager(z0, z1, 0.1)
    return lambda z0, z1: nt_xent.eager(z0, z1, 0.1)

def note(case):
    malloc = sorted(name for name in os.environ if name.startswith("MALLOC_"))
    return f"{os.getpid()} {' '.join(malloc)} {torch.get_num_threads()}"

FAMILY = dataclasses.replace(
    nt_xent.FAMILY, name="children", module=__name__, subject="ours", providers={
        "ours": Provider(build, note=note), "eager": nt_xent.PROVIDERS["eager"],
    },
)
"""


@pytest.fixture
def children(tmp_path, monkeypatch, ceilings):
    """``bench.main`` for a family whose measuring processes tell what they see."""
    (tmp_path / "children_family.py").write_text(CHILDREN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(str(tmp_path))
    measured_before(monkeypatch, ceilings)
    monkeypatch.setattr(bench, "allocator_choices", lambda wanted, device: ("default", "pooled"))
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    family = cases.load("children_family")

    def run(*options):
        path = tmp_path / "result.json"
        few = "--dim 8 --device cpu --rounds 1 --budget 0.01 --no-memory --pass both"
        arguments = bench._parser(family).parse_args([*few.split(), "--json", str(path), *options])
        status = bench.run(family, arguments, command="fastssl bench children")
        return status, json.loads(path.read_text()) if path.exists() else None

    return run


def test_each_allocator_is_measured_in_a_process_of_its_own_and_one_document_says_which(children, capsys):
    status, document = children("--n", "8", "7", "--threads", "1", "--providers", "ours")
    rows = document["rows"]
    assert [(row["sizes"]["N"], row["allocator"], row["status"]) for row in rows] == [
        (8, "default", "ok"), (8, "pooled", "ok"), (7, "default", "ok"), (7, "pooled", "wrong"),
    ]  # fmt: skip
    assert status == 1 and "pooled: ours wrong" in capsys.readouterr().err
    assert all(row["times"]["both"]["samples_s"] for row in rows[:3])
    seen = [row["note"].split() for row in rows]
    assert seen[0] == seen[2] and seen[1] == seen[3]
    assert len({seen[0][0], seen[1][0], str(os.getpid())}) == 3
    assert seen[0][1:] == ["1"] and seen[1][1:] == [*sorted(bench.POOLED), "1"]
    assert document["environment"]["allocator"]["pooled"].items() >= bench.POOLED.items()
    assert not any(name.startswith("MALLOC_") for name in document["environment"]["allocator"]["default"])
    assert os.environ["MALLOC_ARENA_MAX"] == "2"  # our own environment is as it was


def test_a_measuring_process_that_ends_fails_the_command_and_keeps_what_was_measured(children, capsys, monkeypatch):
    monkeypatch.setattr(bench, "allocator_choices", lambda wanted, device: ("default",))
    status, document = children("--n", "8", "6", "--providers", "ours")
    assert status == 7
    assert [row["sizes"]["N"] for row in document["rows"]] == [8]
    assert "ended with status 7" in capsys.readouterr().err


def test_workers_answer_raise_die_and_are_stopped():
    import operator
    import time

    with worker.Worker({**os.environ, "GREETING": "hello"}) as process:
        assert process.call(operator.add, 1, 2) == 3
        assert process.call(os.getenv, "GREETING") == "hello" and os.getenv("GREETING") is None
        with pytest.raises(worker.WorkerError, match="ZeroDivisionError"):
            process.call(operator.truediv, 1, 0)
        assert process.call(operator.add, 1, 2) == 3
        with pytest.raises(worker.WorkerDied) as died:
            process.call(os.abort)
        assert died.value.status == 128 + signal.SIGABRT
    with worker.Worker() as process, pytest.raises(TimeoutError, match="more than 1 s"):
        process.call(time.sleep, 600, timeout=1)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("nothing", f"the family must be one of {', '.join(benchmarks.FAMILIES)}, got 'nothing'"),
        ("nt_xent --n 0", "--n must be above 0, got 0"),
        ("nt_xent --providers none", "--providers: must be among fastssl"),
        ("nt_xent --dtype int8", "invalid choice: 'int8'"),
        ("nt_xent --budget -1", "must be above 0, got -1"),
        ("nt_xent --pass sideways", "invalid choice: 'sideways'"),
        ("nt_xent --device cpu --dtype tf32", "--dtype tf32: only CUDA devices have it"),
        ("plot missing.json --out x.png", "missing.json"),
        ("nt_xent --device cuda", "--device cuda: PyTorch sees no CUDA device"),
    ],
)
def test_a_wrong_command_line_is_named(command, says, capsys):
    if "cuda" in command and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert bench.main(command.split()) == bench.USAGE
    assert says in capsys.readouterr().err


def test_the_allocator_is_chosen_through_the_environment():
    before = {"PATH": "/bin", "MALLOC_ARENA_MAX": "1", "GLIBC_TUNABLES": "glibc.malloc.check=3"}
    before["LD_PRELOAD"] = "/lib/libjemalloc.so.2:/lib/libiomp5.so"
    pooled = bench.allocator_environment("pooled", before)
    assert pooled == {"PATH": "/bin", "LD_PRELOAD": "/lib/libiomp5.so", **bench.POOLED}
    assert bench.allocator_environment("default", pooled) == {"PATH": "/bin", "LD_PRELOAD": "/lib/libiomp5.so"}


def test_both_allocators_are_measured_where_there_is_glibc_and_a_cpu(monkeypatch):
    monkeypatch.setattr(bench.platform, "libc_ver", lambda: ("glibc", "2.40"))
    monkeypatch.setattr(bench.sys, "platform", "linux")
    assert bench.allocator_choices(None, "cpu") == bench.allocator_choices("both", "cpu") == ("default", "pooled")
    assert bench.allocator_choices("pooled", "cpu") == ("pooled",)
    assert bench.allocator_choices("environment", "cpu") == ("environment",)
    assert bench.allocator_choices(None, "cuda") == ("",)
    with pytest.raises(ValueError, match="--allocator both: it is a choice between settings of glibc"):
        bench.allocator_choices("both", "cuda")
    monkeypatch.setattr(bench.platform, "libc_ver", lambda: ("", ""))  # musl
    assert bench.allocator_choices(None, "cpu") == ("environment",)
    with pytest.raises(ValueError, match="--allocator pooled"):
        bench.allocator_choices("pooled", "cpu")


def test_a_missing_package_is_named_before_anything_is_measured(monkeypatch, capsys):
    find = bench.importlib.util.find_spec
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None if name == "rich" else find(name))
    monkeypatch.setattr(limits, "Limits", lambda device, dtypes: pytest.fail("measured"))
    assert bench.main(["nt_xent"]) == bench.USAGE
    assert 'rich is needed and not installed: pip install "fastssl[bench]"' in capsys.readouterr().err


def test_plot_from_a_run_and_again_from_its_file(tmp_path, monkeypatch, ceilings):
    pytest.importorskip("matplotlib")
    measured_before(monkeypatch, ceilings)
    options = "--n 8 --dim 4 --device cpu --rounds 1 --budget 0.01 --no-memory --allocator environment"
    paths = [tmp_path / "new" / name for name in ("run.json", "run.png", "again.png")]
    arguments = f"nt_xent {options} --providers fastssl eager --json {paths[0]} --plot {paths[1]}"
    assert bench.main(arguments.split()) == 0
    assert bench.main(["plot", str(paths[0]), "--out", str(paths[2])]) == 0
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in paths[1:])
