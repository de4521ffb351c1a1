"""How the C++ extension is built, and what is left where it cannot be. test_cuda_build.py is about the CUDA extension.

Sources and objects are found by pattern, as setup.py finds them: a new family of kernels changes nothing here. What the
extension does once it is built is tested in test_extension.py.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from compiled import alone_in

from fastssl import _extension

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc"
CPU_SOURCES = sorted((SOURCES / "cpu").rglob("*.cpp"))
MEMORY_CHECKS = sorted((ROOT / "tests" / "cpp").glob("*_memory.cpp"))  # a program per family
X86_ISAS = ("avx2", "avx512", "avx512_bf16")
SANITIZED_ISAS = {"avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"], "baseline": []}

can_build = _extension.load() is not None
needs_compiler = pytest.mark.skipif(not can_build, reason=str(_extension.why_missing()))
needs_sources = pytest.mark.skipif(not SOURCES.is_dir(), reason="needs the source tree")


def isa_of(path: Path) -> str | None:
    """The instruction set in a file name <family>_<isa>; None for code that every machine runs."""
    for isa in sorted((*X86_ISAS, "baseline"), key=len, reverse=True):
        if path.stem.endswith("_" + isa):
            return isa
    return None


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what the package is built from, in a folder whose name needs quoting."""
    folder = tmp_path_factory.mktemp("check out")
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
        env={**os.environ, "FASTSSL_BUILD_DIR": "", "FASTSSL_SKIP_BUILD": "", "FASTSSL_SKIP_CUDA": "1", **environment},
    )
    assert result.returncode == 0, result.stdout
    return json.loads((target / "fastssl" / "_build_info.json").read_text()), result.stdout


class Built(NamedTuple):
    module: Path
    objects: Path  # the folder of all object files
    isas: list[str]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A finished build of this source tree. Of objects that FASTSSL_BUILD_DIR keeps, only what is old is compiled."""
    with alone_in("built", tmp_path_factory) as folder:
        objects = Path(os.environ.get("FASTSSL_BUILD_DIR") or folder / "objects")
        info, printed = build(ROOT, folder / "lib", FASTSSL_BUILD_DIR=str(objects))
        assert info["error"] is None, printed
        (module,) = folder.rglob("_C*.so")
        return Built(module, objects / "fastssl._C", info["isas"])


# --- where it cannot be built -------------------------------------------------------------------------------


@needs_sources
@pytest.mark.parametrize(
    "environment, reason",
    [
        ({"FASTSSL_SKIP_BUILD": "1"}, "skipped on request (FASTSSL_SKIP_BUILD=1)"),
        ({"CXX": "no-such-compiler -O2"}, "no C++ compiler found (looked for no-such-compiler; set CXX)"),
        ({"CXX": "false -O2"}, "false -O2 does not compile a C++17 program (set CXX)"),
        ({"CXX": "'g++"}, "CXX is not a command: No closing quotation"),
    ],
)
def test_a_build_that_is_not_possible_leaves_a_package_that_says_why(checkout, tmp_path, environment, reason):
    assert_explained(*build(checkout, tmp_path, **environment), tmp_path, reason)


@needs_compiler
@needs_sources
@pytest.mark.parametrize("command", ["{}", "{} -pthread", "env {}"])
def test_a_broken_source_is_named_with_any_way_to_call_the_compiler(checkout, tmp_path, command):
    broken = tmp_path / "broken"
    shutil.copytree(checkout, broken)
    shutil.rmtree(broken / "csrc" / "cpu")
    (broken / "csrc" / "bindings.cpp").write_text("#error this file is broken\n")
    info, printed = build(broken, tmp_path, CXX=command.format(os.environ.get("CXX") or "c++"))
    assert_explained(info, printed, tmp_path, "compilation failed: ")
    assert "this file is broken" in info["error"]


def assert_explained(info: dict, printed: str, target: Path, reason: str) -> None:
    assert info["error"].startswith(reason), info["error"]
    lines = [line for line in printed.splitlines() if line.startswith("fastssl: ") and "CUDA extension" not in line]
    assert lines == [f"fastssl: installing without the C++ extension: {info['error']}"]
    assert not list(target.rglob("_C*.so"))


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
    code = """
        import sys
        # An editable installation must not fill in what the wheel lacks.
        sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
        import fastssl
        from fastssl import _extension
        print(fastssl.__file__, _extension.load(), _extension.why_missing(), sep="\\n")
    """
    printed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        cwd="/",
    ).stdout
    where, module, reason = printed.splitlines()
    assert where.startswith(str(tmp_path / "site"))
    assert module == "None"
    assert reason == "the C++ extension was not built: skipped on request (FASTSSL_SKIP_BUILD=1)"


# --- what is built ------------------------------------------------------------------------------------------


@needs_sources
def test_a_source_distribution_carries_every_source(checkout, tmp_path):
    copy = tmp_path / "copy"  # egg_info writes beside setup.py
    shutil.copytree(checkout, copy)
    command = [sys.executable, "setup.py", "-q", "sdist", "--formats", "tar", "-d", str(tmp_path)]
    subprocess.run(command, check=True, cwd=copy, capture_output=True)
    (archive,) = tmp_path.glob("fastssl-*.tar")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    wanted = {path.relative_to(ROOT).as_posix() for path in SOURCES.rglob("*") if path.suffix in (".h", ".cpp", ".cu")}
    assert len(wanted) > 20
    assert not wanted - names


@needs_compiler
@needs_sources
def test_of_objects_in_a_folder_that_keeps_them_only_the_old_are_compiled(checkout, tmp_path):
    sources = tmp_path / "small" / "csrc"
    shutil.copytree(checkout, sources.parent)
    shutil.rmtree(sources)
    sources.mkdir()
    (sources / "bindings.cpp").write_text("#include <Python.h>\n")
    compiled = []
    for target, answer in (("first", 1), ("again", 1), ("changed", 2)):
        if target != "again":
            (sources / "kernel.cpp").write_text(f"int answer() {{ return {answer}; }}\n")
        _, printed = build(sources.parent, tmp_path / target, FASTSSL_BUILD_DIR=str(tmp_path / "ob jects"))
        compiled.append(sorted(line.split("/")[-1] for line in printed.splitlines() if "] compile " in line))
        assert list((tmp_path / target).rglob("_C*.so"))
    assert compiled == [["bindings.cpp", "kernel.cpp"], [], ["kernel.cpp"]]


@needs_compiler
@needs_sources
def test_every_source_has_an_object_of_its_own(built):
    """By relative path: two families may have files of the same name."""
    objects = {path.relative_to(built.objects) for path in built.objects.rglob("*.o")}
    of_cuda = set((SOURCES / "cuda").rglob("*.cpp"))
    sources = [path for path in {*SOURCES.rglob("*.cpp")} - of_cuda if isa_of(path) in (None, *built.isas)]
    assert objects == {path.relative_to(SOURCES).with_suffix(".o") for path in sources}


@needs_compiler
@needs_sources
@pytest.mark.skipif(not sys.platform.startswith("linux") or shutil.which("nm") is None, reason="needs nm")
def test_no_instruction_set_leaks_into_another(built):
    """A weak symbol of an AVX-512 object could replace the baseline's, and then end an older machine's process."""
    objects = [path for path in built.objects.rglob("*.o") if isa_of(path)]
    assert {isa_of(path) for path in objects} == set(_extension.load().info()["isas_compiled"])
    for path in objects:
        for kind, name in symbols(path):
            if kind in "WVu":
                assert name.startswith("DW.ref.") or f"fastssl::{isa_of(path)}::" in name, (path.name, name)


@needs_compiler
@needs_sources
@pytest.mark.skipif(not sys.platform.startswith("linux") or shutil.which("nm") is None, reason="needs nm")
def test_the_module_exports_nothing_but_its_entry(built):
    names = [name for _, name in symbols(built.module, "-D")]
    assert "PyInit__C" in names
    assert not [name for name in names if "fastssl" in name]


def symbols(path: Path, *options: str) -> list[tuple[str, str]]:
    """Kind and demangled name of every symbol that a file defines."""
    command = ["nm", "-C", "--defined-only", *options, str(path)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [tuple(line.split(maxsplit=2)[1:]) for line in listed.splitlines()]


@needs_sources
@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="no cross compiler for AArch64")
def test_the_same_templates_compile_for_aarch64(tmp_path):
    flags = ["-std=c++17", "-O1", "-ffp-contract=fast", "-fopenmp", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}", "-c"]
    for source in CPU_SOURCES:
        if isa_of(source) in X86_ISAS:
            continue
        command = ["aarch64-linux-gnu-g++", *flags, str(source), "-o", str(tmp_path / "x.o")]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


def sanitized(program: Path, folder: Path, factory: pytest.TempPathFactory) -> Path:
    """A program of tests/cpp and the families of kernels that it includes, built with AddressSanitizer and UBSan."""
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    flags = ["-std=c++17", "-Og", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno"]  # -O1 compiles twice as long
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{SOURCES}", "-DFASTSSL_HAVE_AVX512"]
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }")
    if subprocess.run([*compiler, *flags, str(probe), "-o", str(folder / "probe")], capture_output=True).returncode:
        pytest.skip("the compiler has no sanitizers")
    families = re.findall(r'#include "(cpu/\w+)/', program.read_text())

    def compiled(part: str, into: Path) -> list[Path]:
        objects = []
        for source in sorted((SOURCES / part).glob("*.cpp")):
            if isa_of(source) in (None, *SANITIZED_ISAS):
                objects.append(into / f"{source.stem}.o")
                if not objects[-1].exists():
                    extra = SANITIZED_ISAS.get(isa_of(source), [])
                    subprocess.run([*compiler, *flags, *extra, "-c", str(source), "-o", str(objects[-1])], check=True)
        return objects

    with alone_in("sanitized", factory) as shared:
        objects = compiled("cpu", shared)
    for part in families:
        (folder / part).mkdir(parents=True, exist_ok=True)
        objects += compiled(part, folder / part)
    output = folder / program.stem
    subprocess.run([*compiler, *flags, str(program), *map(str, objects), "-o", str(output)], check=True)
    return output


@needs_compiler
@needs_sources
@pytest.mark.skipif(platform.machine() != "x86_64", reason="sanitizers are checked on x86-64")
@pytest.mark.parametrize("program", MEMORY_CHECKS, ids=lambda path: path.stem)
def test_kernels_stay_inside_their_buffers(tmp_path, tmp_path_factory, program):
    """Small odd sizes, on the baseline and on the widest vectors."""
    executable = sanitized(program, tmp_path, tmp_path_factory)
    for isa in SANITIZED_ISAS:
        environment = {**os.environ, "FASTSSL_CPU_ISA": isa}
        result = subprocess.run([str(executable)], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        assert result.stdout.strip() == "clean"
