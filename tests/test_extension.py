"""The C++ extension at work: instruction sets, threads, forked processes, memory.

What the operators compute is tested in tests/ops, here only that each way of running them gives the same result.
How the extension is built is tested in test_build.py.
"""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import textwrap

import commands
import pytest
import torch

from fastssl import _extension
from fastssl.ops.pairwise import composed, cpp  # noqa: F401 - composed is for code that runs in other processes

extension = _extension.load()
needs_extension = pytest.mark.skipif(extension is None, reason=str(_extension.why_missing()))

NT_XENT = {
    "scale": 10.0,
    "normalize": True,
    "positives": "pair",
    "row_key": None,
    "col_key": None,
    "exclude_self": True,
    "exclude_positives": False,
    "row_offset": 0,
    "col_offset": 0,
}


def nt_xent(z: torch.Tensor, **changes: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-sums, positives, gradient and scale's gradient of the mean of lse - positive."""
    rules = {**NT_XENT, **changes}
    row_lse, positive = cpp.pairwise_logsumexp(z, None, None, **rules)
    weight = torch.full_like(row_lse, 1 / len(z))
    of_rows = (row_lse, weight, -weight)
    return (
        row_lse,
        positive,
        *cpp.pairwise_logsumexp_grad(z, None, None, *of_rows, None, None, None, row_step=1, **rules),
    )


def rows(count: int = 400, dim: int = 64, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(0)).to(dtype)


def run_python(code: str, **environment: str) -> str:
    """Runs code in a process that has not loaded the extension yet; returns what it printed."""
    set_up = f"import os; os.environ.update({environment!r})\n"
    result = commands.run("-c", set_up + textwrap.dedent(code), cwd="/", timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# --- the module ---------------------------------------------------------------------------------------------


@needs_extension
def test_the_extension_describes_itself():
    info = extension.info()
    assert info["isa"] in info["isas_compiled"]
    assert info["isas_compiled"][0] == "baseline"
    assert info["threads_max"] >= 1
    assert info["forked"] is False
    assert _extension.why_missing() is None
    recorded = _extension.build_info()
    assert recorded["isas"] == info["isas_compiled"]
    assert recorded["openmp"] == info["openmp"]
    assert recorded["error"] is None


@needs_extension
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
def test_one_openmp_runtime_serves_pytorch_and_the_extension():
    code = """
        import torch, fastssl
        torch.set_num_threads(2)
        with fastssl.backend("cpp"):
            fastssl.functional.nt_xent(torch.randn(400, 64), torch.randn(400, 64))
        torch.randn(500, 500) @ torch.randn(500, 500)
        with open("/proc/self/maps") as maps:
            files = {line.split()[-1] for line in maps if "gomp" in line or "iomp" in line or "libomp" in line}
        print(len(files), files)
    """
    # A new process: other libraries, which commands find imported, bring an OpenMP of their own.
    command = [sys.executable, "-c", textwrap.dedent(code)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd="/").stdout
    assert int(printed.split()[0]) <= 1, printed


@needs_extension
def test_arguments_that_would_read_wild_memory_are_refused():
    problem = {
        "q": 0, "k": 0, "rows": 1, "cols": 1, "dim": 1, "q_stride": 1, "k_stride": 1, "q_other": 0, "q_other_stride": 0,
        "dtype": 0, "scale": 1.0, "normalize": True, "positives": 0, "row_key": 0, "col_key": 0, "exclude_self": False,
        "exclude_positives": False, "row_offset": 0, "col_offset": 0, "row_step": 1, "threads": 1,
    }  # fmt: skip
    outputs = {"allow_bfloat16_product": False, "row_lse": 1, "positive": 1}
    for wrong, message in (
        ({}, "q must not be null"),
        ({"q": 1, "rows": 0}, "at least 1"),
        ({"q": 1, "cols": 2}, "cols must equal rows"),
        ({"q": 1, "q_other": 1}, "rows must be even"),
        ({"q": 1, "positives": 3}, "need row_key and col_key"),
        ({"q": 1, "positives": 4}, "positives by index need row_key and k"),
        ({"q": 1, "positives": 5}, "unknown rule"),
        ({"q": 1, "dtype": 9}, "unknown dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            extension.pairwise_logsumexp(extension.PairwiseProblem(**{**problem, **wrong}), **outputs)
    outputs = {
        "allow_bfloat16_product": False, "weight": 1.0, "row_weight": 0, "positive_weight": 0, "loss": 1, "dq": 1,
        "dq_other": 0, "dscale": 1,
    }  # fmt: skip
    for wrong, changed, message in (
        ({"q": 1, "k": 1, "cols": 2}, {}, "columns must be the rows, or as many"),
        ({"q": 1}, {"dq_other": 1}, "dq_other needs q_other or k"),
        ({"q": 1}, {"row_weight": 1}, "go together"),
        ({"q": 1, "k": 1}, {"row_weight": 1, "positive_weight": 1}, "not with k"),
        ({"q": 1}, {"loss": 0}, "loss must not be null"),
        ({"q": 1}, {"dscale": 0}, "dscale must not be null"),
        ({"q": 1, "q_other": 1, "rows": 2, "cols": 2}, {}, "q_other needs dq_other"),
    ):
        with pytest.raises(ValueError, match=message):
            extension.pairwise_loss(extension.PairwiseProblem(**{**problem, **wrong}), **{**outputs, **changed})
    outputs = {"allow_bfloat16_product": False, "weight": 1.0, "bias": 0.0, "loss": 1, "dq": 1, "dq_other": 1}
    for wrong, changed, message in (
        ({"q": 1}, {}, "k must not be null"),
        ({"q": 1, "k": 1}, {"loss": 0}, "loss must not be null"),
        ({"q": 1, "k": 1}, {}, "dscale and dbias must not be null"),
    ):
        with pytest.raises(ValueError, match=message):
            extension.pairwise_sigmoid(
                extension.PairwiseProblem(**{**problem, **wrong}), **{**outputs, "dscale": 0, "dbias": 0, **changed}
            )


# --- instruction sets ---------------------------------------------------------------------------------------


@needs_extension
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "avx512_bf16"])
def test_every_instruction_set_gives_the_same_result(isa):
    if isa not in extension.info()["isas_compiled"]:
        pytest.skip(f"{isa} is not compiled in")
    printed = run_python(
        """
        import test_extension as here, torch
        isa = here.extension.info()["isa"]
        for changes in ({}, {"scale": 100.0}, {"positives": "diagonal", "exclude_self": False}):
            truth = here.nt_xent(here.rows(257, 33, torch.float64), **changes)
            for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 4e-2), (torch.float16, 4e-3)):
                exact = here.nt_xent(here.rows(257, 33, dtype).double(), **changes)
                for got, want in zip(here.nt_xent(here.rows(257, 33, dtype), **changes), exact):
                    error = (got.double() - want).norm() / want.norm()
                    assert error < bound * (1 if len(changes) != 1 else 10), (isa, dtype, changes, error)
            z = here.rows(257, 33, torch.float64)
            unit = z / z.norm(dim=1, keepdim=True)
            logits = changes.get("scale", 10.0) * unit @ unit.T
            if changes.get("exclude_self", True):
                logits.fill_diagonal_(-torch.inf)
            torch.testing.assert_close(truth[0], logits.logsumexp(1), rtol=1e-14, atol=1e-13)
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            z0, z1 = here.rows(257, 33, dtype)[:128], here.rows(257, 33, dtype)[129:]
            for scale in (10.0, 100.0):
                rules = {"scale": scale, "normalize": True, "weight": 1.0, "gradient": True}
                loss, *gradients = here.cpp.nt_xent(z0, z1, None, **rules)
                two = here.cpp.pairwise_logsumexp, here.cpp.pairwise_logsumexp_grad
                expected, *apart = here.composed.nt_xent(*two, z0, z1, None, **rules)
                torch.testing.assert_close(loss, expected)
                assert all(torch.equal(a, b) for a, b in zip(gradients, apart)), (isa, dtype, scale)
        print(isa)
        """,
        FASTSSL_CPU_ISA=isa,
    )
    order = ["baseline", "avx2", "avx512", "avx512_bf16"]
    assert order.index(printed.strip()) <= order.index(isa)  # lower where this machine lacks it


@needs_extension
@pytest.mark.parametrize("isa", ["baseline", "avx2"])  # the widest serves all other tests
def test_the_row_wise_kernels_are_right_on_every_instruction_set(isa):
    printed = run_python(
        """
        import harness, test_sinkhorn, test_soft_target, torch
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            with harness.serving("cpp", "cpu", dtype, "soft_target_cross_entropy"):
                for sizes in ((4, 2, 5, 33), (3, 3, 2, 4100)):
                    test_soft_target.check(test_soft_target.problem(*sizes, dtype, rows=sizes[0] == 3))
                for dim in (0, 1):
                    test_sinkhorn.check(test_sinkhorn.random(37, 1030, dtype=dtype), None, dim)
        print(harness.fastssl._extension.load().info()["isa"])
        """,
        FASTSSL_CPU_ISA=isa,
    )
    assert printed.strip() in ("baseline", isa)


@needs_extension
def test_medium_precision_permits_the_bfloat16_product():
    """As for PyTorch's own products of float32 matrices."""
    z, before = rows(), torch.get_float32_matmul_precision()
    exact = nt_xent(z)
    try:
        torch.set_float32_matmul_precision("medium")
        got = nt_xent(z)
    finally:
        torch.set_float32_matmul_precision(before)
    takes_it = extension.info()["isa"] == "avx512_bf16"
    for a, b in zip(got, exact, strict=True):
        assert torch.equal(a, b) != takes_it
        assert (a - b).norm() < 4e-2 * b.norm()


@needs_extension
def test_an_unknown_instruction_set_is_reported_and_plain_pytorch_serves():
    printed = run_python(
        """
        import warnings, torch, fastssl
        from fastssl import _extension
        from fastssl.ops import registry
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                fastssl.functional.nt_xent(torch.randn(4, 8), torch.randn(4, 8))
        assert len(caught) == 1, [str(w.message) for w in caught]
        print(caught[0].message)
        """,
        FASTSSL_CPU_ISA="sse9",
    )
    assert "FASTSSL_CPU_ISA must be one of baseline, avx2, avx512, avx512_bf16, got 'sse9'" in printed
    assert "served by plain PyTorch" in printed


# --- threads ------------------------------------------------------------------------------------------------


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, {"scale": 100.0}], ids=["symmetric", "running maximum"])
def test_results_are_bitwise_equal_on_any_number_of_threads(dtype, changes):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = nt_xent(rows(1000, 64, dtype), **changes)
        for threads in (2, 3, 5):
            torch.set_num_threads(threads)
            together = nt_xent(rows(1000, 64, dtype), **changes)
            assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True)), threads
    finally:
        torch.set_num_threads(before)


@needs_extension
def test_python_threads_may_call_at_the_same_time(two_threads):
    want = nt_xent(rows())
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: nt_xent(rows()), range(16)):
            assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


@needs_extension
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_uses_one_thread_and_does_not_hang():
    printed = run_python("""
        import os, signal, torch, test_extension as here
        torch.set_num_threads(2)
        want = here.nt_xent(here.rows())  # the parent's threads now exist; the child has none of them
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # a hang ends as a signal, not as a test that never returns
            same = all(torch.equal(a, b) for a, b in zip(want, here.nt_xent(here.rows())))
            os._exit(0 if same and here.extension.info()["forked"] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        again = here.nt_xent(here.rows())
        assert all(torch.equal(a, b) for a, b in zip(want, again)) and not here.extension.info()["forked"]
        print("ok")
    """)
    assert printed.strip() == "ok"


@needs_extension
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked on Linux")
def test_data_loader_workers_may_call_after_the_parent_did():
    printed = run_python("""
        import torch, test_extension as here

        class Losses(torch.utils.data.Dataset):
            def __len__(self):
                return 4
            def __getitem__(self, index):
                torch.set_num_threads(2)  # DataLoader sets 1; a worker may raise it
                return here.nt_xent(here.rows())[0]

        torch.set_num_threads(2)
        want = here.nt_xent(here.rows())[0]
        loader = torch.utils.data.DataLoader(Losses(), num_workers=2, timeout=60, multiprocessing_context="fork")
        assert all(torch.equal(batch[0], want) for batch in loader)
        print("ok")
    """)
    assert printed.strip() == "ok"


# --- memory -------------------------------------------------------------------------------------------------


@needs_extension
def test_workspaces_are_kept_between_calls_and_released_on_request():
    extension.release_workspaces()
    nt_xent(rows())
    held = extension.info()["workspace_bytes"]
    nt_xent(rows())
    assert extension.info()["workspace_bytes"] == held > 0
    assert extension.release_workspaces() == held
    assert extension.info()["workspace_bytes"] == 0


@needs_extension
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
def test_memory_that_cannot_be_had_is_a_memory_error():
    printed = run_python("""
        import resource, torch, test_extension as here
        torch.set_num_threads(1)
        z = here.rows(20000, 512)
        here.nt_xent(here.rows())
        with open("/proc/self/statm") as pages:
            used = int(pages.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (48 << 20), -1))
        try:
            here.cpp.pairwise_logsumexp_grad(
                z, None, None, *[torch.zeros(20000)] * 3, None, None, None, row_step=1, **here.NT_XENT
            )
        except MemoryError:
            print("MemoryError")
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        here.nt_xent(here.rows())
    """)
    assert printed.strip() == "MemoryError"
