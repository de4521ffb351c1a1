"""The C++ extension: how it is built, what happens without it, threads, forks, instruction sets, memory.

What the operators compute is tested in tests/ops; here only that each way of running the kernels gives their result.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import platform
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
import torch

from fastssl import _extension
from fastssl.ops.pairwise import cpp

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc"

extension = _extension.load()
needs_extension = pytest.mark.skipif(extension is None, reason=str(_extension.why_missing()))
needs_sources = pytest.mark.skipif(not SOURCES.is_dir(), reason="needs the source tree")

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


def run_python(code: str, timeout: float = 120, **environment: str) -> str:
    """Runs code in a new process that imports this module as `build`; returns what it printed."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": path, **environment},
        cwd="/",
    )
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
    printed = run_python("""
        from fastssl import _extension
        assert _extension.load() is not None, _extension.why_missing()
        import test_build as build, torch
        torch.set_num_threads(2)
        build.nt_xent(build.rows())
        torch.randn(500, 500) @ torch.randn(500, 500)
        with open("/proc/self/maps") as maps:
            files = {line.split()[-1] for line in maps if "gomp" in line or "iomp" in line or "libomp" in line}
        print(len(files), files)
    """)
    assert int(printed.split()[0]) <= 1, printed


@needs_extension
def test_arguments_that_would_read_wild_memory_are_refused():
    problem = {
        "q": 0, "k": 0, "rows": 1, "cols": 1, "dim": 1, "q_stride": 1, "k_stride": 1, "dtype": 0, "scale": 1.0,
        "normalize": True, "positives": 0, "row_key": 0, "col_key": 0, "exclude_self": False,
        "exclude_positives": False, "row_offset": 0, "col_offset": 0, "row_step": 1, "threads": 1,
    }  # fmt: skip
    outputs = {"allow_bfloat16_product": False, "row_lse": 1, "positive": 1}
    for wrong, message in (
        ({}, "q must not be null"),
        ({"q": 1, "rows": 0}, "at least 1"),
        ({"q": 1, "cols": 2}, "cols must equal rows"),
        ({"q": 1, "positives": 3}, "need row_key and col_key"),
        ({"q": 1, "positives": 4}, "unknown rule"),
        ({"q": 1, "dtype": 9}, "unknown dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            extension.pairwise_logsumexp(extension.PairwiseProblem(**{**problem, **wrong}), **outputs)


# --- instruction sets ---------------------------------------------------------------------------------------


@needs_extension
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "avx512_bf16"])
def test_every_instruction_set_gives_the_same_result(isa):
    if isa not in extension.info()["isas_compiled"]:
        pytest.skip(f"{isa} is not compiled in")
    printed = run_python(
        """
        import test_build as build, torch
        isa = build.extension.info()["isa"]
        for changes in ({}, {"scale": 100.0}, {"positives": "diagonal", "exclude_self": False}):
            truth = build.nt_xent(build.rows(257, 33, torch.float64), **changes)
            for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 4e-2), (torch.float16, 4e-3)):
                exact = build.nt_xent(build.rows(257, 33, dtype).double(), **changes)
                for got, want in zip(build.nt_xent(build.rows(257, 33, dtype), **changes), exact):
                    error = (got.double() - want).norm() / want.norm()
                    assert error < bound * (1 if len(changes) != 1 else 10), (isa, dtype, changes, error)
            z = build.rows(257, 33, torch.float64)
            unit = z / z.norm(dim=1, keepdim=True)
            logits = changes.get("scale", 10.0) * unit @ unit.T
            if changes.get("exclude_self", True):
                logits.fill_diagonal_(-torch.inf)
            torch.testing.assert_close(truth[0], logits.logsumexp(1), rtol=1e-14, atol=1e-13)
        print(isa)
        """,
        FASTSSL_CPU_ISA=isa,
    )
    order = ["baseline", "avx2", "avx512", "avx512_bf16"]
    assert order.index(printed.strip()) <= order.index(isa)  # lower where this machine lacks it


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
        import os, signal, torch, test_build as build
        torch.set_num_threads(2)
        want = build.nt_xent(build.rows())  # the parent's threads now exist; the child has none of them
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # a hang ends as a signal, not as a test that never returns
            same = all(torch.equal(a, b) for a, b in zip(want, build.nt_xent(build.rows())))
            os._exit(0 if same and build.extension.info()["forked"] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        again = build.nt_xent(build.rows())
        assert all(torch.equal(a, b) for a, b in zip(want, again)) and not build.extension.info()["forked"]
        print("ok")
    """)
    assert printed.strip() == "ok"


@needs_extension
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked on Linux")
def test_data_loader_workers_may_call_after_the_parent_did():
    printed = run_python("""
        import torch, test_build as build

        class Losses(torch.utils.data.Dataset):
            def __len__(self):
                return 4
            def __getitem__(self, index):
                torch.set_num_threads(2)  # DataLoader sets 1; a worker may raise it
                return build.nt_xent(build.rows())[0]

        torch.set_num_threads(2)
        want = build.nt_xent(build.rows())[0]
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
        import resource, torch, test_build as build
        torch.set_num_threads(1)
        z = build.rows(20000, 512)
        build.nt_xent(build.rows())
        with open("/proc/self/statm") as pages:
            used = int(pages.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (48 << 20), -1))
        try:
            build.cpp.pairwise_logsumexp_grad(
                z, None, None, *[torch.zeros(20000)] * 3, None, None, None, row_step=1, **build.NT_XENT
            )
        except MemoryError:
            print("MemoryError")
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        build.nt_xent(build.rows())
    """)
    assert printed.strip() == "MemoryError"


# --- the build ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what the package is built from."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("csrc", "kernels", "benchmarks", "fastssl"):
        ignored = shutil.ignore_patterns("*.so", "_build_info.json", "__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def build(checkout: Path, target: Path, **environment: str) -> tuple[dict, str]:
    """Runs `setup.py build_ext`; returns the recorded information and what was printed."""
    result = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", str(target), "--build-temp", str(target / "objects")],
        cwd=checkout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "FASTSSL_SKIP_BUILD": "", **environment},
    )
    assert result.returncode == 0, result.stdout
    return json.loads((target / "fastssl" / "_build_info.json").read_text()), result.stdout


@needs_sources
def test_a_build_that_fails_leaves_a_package_that_says_why(checkout, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(checkout, broken)
    (broken / "csrc" / "bindings.cpp").write_text("#error this file is broken\n")
    for environment, source, reason in (
        ({"FASTSSL_SKIP_BUILD": "1"}, checkout, "skipped on request (FASTSSL_SKIP_BUILD=1)"),
        ({"CXX": "no-such-compiler"}, checkout, "no C++ compiler found (looked for no-such-compiler; set CXX)"),
        ({}, broken, "compilation failed: "),
    ):
        if source is broken and extension is None:
            continue
        target = tmp_path / reason[:7]
        info, printed = build(source, target, **environment)
        assert info["error"].startswith(reason)
        lines = [line for line in printed.splitlines() if line.startswith("fastssl: ")]
        assert lines == [f"fastssl: installing without the C++ extension: {info['error']}"]
        assert not list(target.rglob("_C*.so"))
    assert "this file is broken" in info["error"] or extension is None


@needs_sources
def test_a_wheel_without_the_extension_is_complete_and_explains_itself(checkout, tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-q", "-w", str(tmp_path)]
    subprocess.run([*command, str(checkout)], check=True, env={**os.environ, "FASTSSL_SKIP_BUILD": "1"})
    (wheel,) = tmp_path.glob("fastssl-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    sources = {f"fastssl/{path.relative_to(ROOT / 'fastssl')}" for path in (ROOT / "fastssl").rglob("*.py")}
    for folder in ("kernels", "benchmarks"):
        sources |= {f"fastssl/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*.py")}
    configs = {f"fastssl/configs/{path.name}" for path in (ROOT / "fastssl" / "configs").glob("*.yaml")}
    missing = (sources | configs | {"fastssl/py.typed", "fastssl/_build_info.json"}) - names
    assert not missing
    printed = run_python(
        """
        import sys
        # An editable installation must not fill in what the wheel lacks.
        sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
        import fastssl
        from fastssl import _extension
        print(fastssl.__file__, _extension.load(), _extension.why_missing(), sep="\\n")
        """,
        PYTHONPATH=str(tmp_path / "site"),
    )
    where, module, reason = printed.splitlines()
    assert where.startswith(str(tmp_path / "site"))
    assert module == "None"
    assert reason == "the C++ extension was not built: skipped on request (FASTSSL_SKIP_BUILD=1)"


@needs_extension
@needs_sources
@pytest.mark.skipif(not sys.platform.startswith("linux") or shutil.which("nm") is None, reason="needs nm")
def test_no_instruction_set_leaks_into_another(checkout, tmp_path):
    """A weak symbol of an AVX-512 object could replace the baseline's, and then end an older machine's process."""
    info, _ = build(checkout, tmp_path)
    assert info["error"] is None
    objects = [path for path in tmp_path.rglob("pairwise_*.o")]
    assert len(objects) == len(info["isas"])
    for path in objects:
        isa = path.stem.removeprefix("pairwise_")
        listed = subprocess.run(["nm", "-C", "--defined-only", str(path)], capture_output=True, text=True, check=True)
        for line in listed.stdout.splitlines():
            kind, name = line.split(maxsplit=2)[1:]
            assert kind not in "WVu" or name.startswith("DW.ref.") or f"fastssl::{isa}::" in name, line
    (module,) = tmp_path.rglob("_C*.so")
    exported = subprocess.run(["nm", "-D", "--defined-only", str(module)], capture_output=True, text=True, check=True)
    assert "PyInit__C" in exported.stdout
    assert "fastssl" not in exported.stdout


@needs_sources
@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="no cross compiler for AArch64")
def test_the_same_templates_compile_for_aarch64(tmp_path):
    flags = ["-std=c++17", "-O1", "-ffp-contract=fast", "-fopenmp", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}", "-c"]
    for name in ("isa", "pairwise", "parallel", "workspace", "pairwise_baseline"):
        command = ["aarch64-linux-gnu-g++", *flags, str(SOURCES / "cpu" / f"{name}.cpp"), "-o", str(tmp_path / "x.o")]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


@needs_extension
@needs_sources
@pytest.mark.skipif(platform.machine() != "x86_64", reason="sanitizers are checked on x86-64")
def test_kernels_stay_inside_their_buffers(tmp_path):
    """AddressSanitizer and UBSan over small odd sizes, on the baseline and on the widest vectors."""
    names = {"avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"], "baseline": []}
    compiler = os.environ.get("CXX", "g++")
    flags = ["-std=c++17", "-O1", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{SOURCES}", "-DFASTSSL_HAVE_AVX512"]
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() { return 0; }")
    if subprocess.run([compiler, *flags, str(probe), "-o", str(tmp_path / "probe")], capture_output=True).returncode:
        pytest.skip("the compiler has no sanitizers")
    sources = {SOURCES / "cpu" / f"{name}.cpp": [] for name in ("isa", "pairwise", "parallel", "workspace")}
    sources |= {SOURCES / "cpu" / f"pairwise_{isa}.cpp": extra for isa, extra in names.items()}
    sources[ROOT / "tests" / "cpp" / "memory_check.cpp"] = []
    for source, extra in sources.items():
        command = [compiler, *flags, *extra, "-c", str(source), "-o", str(tmp_path / f"{source.stem}.o")]
        subprocess.run(command, check=True)
    program = tmp_path / "memory_check"
    subprocess.run([compiler, *flags, *map(str, tmp_path.glob("*.o")), "-o", str(program)], check=True)
    for isa in names:
        environment = {**os.environ, "FASTSSL_CPU_ISA": isa}
        result = subprocess.run([str(program)], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        assert result.stdout.strip() == "clean"
