"""The CUDA extension: what the installed module holds, and what an installation is without it.

Nothing here needs a GPU. The module's own code is tested on the host by ops/test_augment_device.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
import torch

import fastssl
from fastssl import _extension

ROOT = Path(__file__).resolve().parent.parent
cuda = _extension.load("_CUDA")
needs_module = pytest.mark.skipif(cuda is None, reason=str(_extension.why_missing("_CUDA")))
needs_sources = pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="needs the source tree")
no_device = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


# --- what is built ------------------------------------------------------------------------------------------


def cuobjdump(*options: str) -> str:
    """What CUDA's tool says of the module; Triton brings the tool where the toolkit does not."""
    found = shutil.which("cuobjdump")
    triton = util.find_spec("triton")
    if found is None and triton is not None and triton.origin is not None:
        found = shutil.which("cuobjdump", path=str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
    if found is None:
        pytest.skip("no cuobjdump")
    return subprocess.run([found, *options, cuda.__file__], capture_output=True, text=True, check=True).stdout


@needs_module
def test_the_module_holds_code_for_three_generations_and_ptx_for_later_ones():
    codes = _extension.build_info("_CUDA")["codes"]
    if int(_extension.build_info("_CUDA")["nvcc"].lstrip("V").split(".")[0]) >= 13:  # older ones know fewer
        assert codes == ["sm_80", "sm_90a", "sm_100", "compute_100"]
    listed = cuobjdump("--list-elf", "--list-ptx")
    for code in codes[:-1]:
        assert len(re.findall(rf"\.{code}\.cubin", listed)) == 2, listed  # of two source files
    assert re.findall(r"\.sm_(\w+)\.ptx", listed) == [codes[-1].removeprefix("compute_")] * 2


@needs_module
def test_no_kernel_spills_registers_or_keeps_arrays_in_memory():
    report = cuobjdump("--dump-resource-usage")
    kernels = re.findall(r"Function \S*?(sample|resample_views|continue_views|write_numbers)\S*:\s+(.*)", report)
    generations = len(_extension.build_info("_CUDA")["codes"]) - 1
    assert len(kernels) == generations * (1 + 4 + 2 + 1), report
    for name, usage in kernels:
        numbers = dict(pair.split(":") for pair in usage.split() if "[" not in pair)
        assert numbers["STACK"] == numbers["LOCAL"] == "0", (name, usage)
        assert int(numbers["REG"]) <= 128, (name, usage)


@needs_module
@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_the_module_brings_its_runtime_and_shows_nothing_but_its_entry():
    dynamic = subprocess.run(["readelf", "-d", "--dyn-syms", "-W", cuda.__file__], capture_output=True, text=True)
    needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic.stdout)
    assert needed and not [name for name in needed if re.search("cuda|torch|c10", name)]
    exported = re.findall(r"GLOBAL DEFAULT +\d+ (\S+)", dynamic.stdout)
    assert exported == ["PyInit__CUDA"]


@needs_module
def test_the_module_imports_and_describes_itself_without_a_driver_or_torch():
    code = """
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location("fastssl._CUDA", sys.argv[1])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert "torch" not in sys.modules
        print(module.info()["runtime"])
    """
    command = [sys.executable, "-c", "\n".join(line.strip() for line in code.splitlines()), cuda.__file__]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env={"CUDA_VISIBLE_DEVICES": ""})
    assert int(printed.stdout) // 1000 == int(_extension.build_info("_CUDA")["nvcc"].lstrip("V").split(".")[0])


@needs_module
@no_device
def test_errors_of_cuda_are_exceptions_with_its_words():
    with pytest.raises(RuntimeError, match=r"CUDA: cudaSetDevice: cudaError[A-Za-z]+: "):
        cuda.view_parameters(
            index=0, sizes=0, batch=1, height=4, width=4, out_height=2, out_width=2, seed=0, epoch=0, view=0,
            program=[1.0, 1.0, *[0.0] * 10], out=0, device=0, stream=0,
        )  # fmt: skip
    with pytest.raises(RuntimeError, match="CUDA: cudaSetDevice: cudaError"):
        cuda.write_table(numbers=[1, 2, 3], out=0, device=0, stream=0)
    problem = cuda.AugmentProblem(
        table=0, data=0, stack=(4, 4, 48, 16, 4, 1), batch=1, channels=3, parameters=0, steps=1, passes=1, height=4,
        width=4, bicubic=False, out=0, dtype=0,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="CUDA: cudaSetDevice: cudaError"):
        cuda.augment_view(problem, mean=[0.0] * 3, std=[1.0] * 3, workspace=0, workspace_bytes=0, device=0, stream=0)


@needs_module
@pytest.mark.parametrize(("passes", "copies"), [(0, 0), (1, 1), (2, 2), (-1, 2), (7, 2)])
def test_the_workspace_holds_what_passes_between_launches(passes, copies):
    """Per image and copy: four half-precision numbers per pixel of a color view, and a sum per tile of 32 x 64."""
    problem = cuda.AugmentProblem(
        table=0, data=0, stack=(4, 4, 48, 16, 4, 1), batch=100, channels=3, parameters=0, steps=4, passes=passes,
        height=64, width=64, bicubic=False, out=0, dtype=0,
    )  # fmt: skip
    assert cuda.augment_workspace(problem, 1) == copies * (64 * 64 * 8 + 16)
    assert cuda.augment_workspace(problem, 1000) == 100 * cuda.augment_workspace(problem, 1)


# --- where it cannot be built -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout with a C++ extension that compiles quickly, in a folder whose name needs quoting."""
    folder = tmp_path_factory.mktemp("check out")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "csrc" / "cuda", folder / "csrc" / "cuda")
    (folder / "csrc" / "bindings.cpp").write_text("#include <Python.h>\n")
    for name in ("kernels", "benchmarks", "fastssl"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
    shutil.copy(ROOT / "fastssl" / "_version.py", folder / "fastssl")
    return folder


SETTINGS = ("FASTSSL_BUILD_DIR", "FASTSSL_SKIP_BUILD", "FASTSSL_SKIP_CUDA", "CUDA_PATH")  # those of who runs the tests


def build(checkout: Path, target: Path, **environment: str) -> tuple[dict, list[str]]:
    """Runs `setup.py build_ext`; returns what was recorded and what it said about extensions that it left out."""
    result = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", str(target), "--build-temp", str(target / "objects")],
        cwd=checkout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **dict.fromkeys(SETTINGS, ""), **environment},
    )
    assert result.returncode == 0, result.stdout
    info = json.loads((target / "fastssl" / "_build_info.json").read_text())
    return info, [line for line in result.stdout.splitlines() if line.startswith("fastssl: ")]


def fake_nvcc(folder: Path, script: str) -> str:
    """A CUDA_HOME whose nvcc is a script of the shell."""
    (folder / "bin").mkdir(parents=True)
    path = folder / "bin" / "nvcc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(folder)


VERSION = 'if [ "$1" = --version ]; then echo "release {}, V{}.1"; exit 0; fi\n'
ARCHITECTURES = 'if [ "$1" = --list-gpu-arch ]; then echo {}; exit 0; fi\n'
FAKES = {
    "broken": ("echo nothing works; exit 1", "nvcc --version failed: nothing works"),
    "another program": ("echo hello", "nvcc is no CUDA 12 or newer"),
    "old": (VERSION.format("11.8", "11.8"), "nvcc is no CUDA 12 or newer"),
    "for other GPUs": (
        VERSION.format("13.0", "13.0") + ARCHITECTURES.format("compute_75"),
        "nvcc knows none of the architectures 80, 90a, 100",
    ),
    "failing": (
        VERSION.format("13.0", "13.0") + ARCHITECTURES.format("compute_80 compute_90") + "echo error: no; exit 1",
        "compilation failed: error: no",
    ),
}


@needs_sources
@pytest.mark.parametrize("kind", FAKES)
def test_an_nvcc_that_cannot_build_leaves_the_rest_and_says_why(checkout, tmp_path, kind):
    script, reason = FAKES[kind]
    info, said = build(checkout, tmp_path / "built", CUDA_HOME=fake_nvcc(tmp_path / "cu da", script))
    assert info["error"] is None and len(list(tmp_path.rglob("_C.*"))) == 1
    assert info["cuda"]["error"].endswith(reason) and info["cuda"]["codes"] == []
    assert said == [f"fastssl: installing without the CUDA extension: {info['cuda']['error']}"]
    assert not list(tmp_path.rglob("_CUDA.*"))


@needs_sources
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CUDA_HOME": "/nowhere", "PATH": "/nowhere"}, "nvcc not found (looked in CUDA_HOME and on the PATH)"),
        ({"FASTSSL_SKIP_CUDA": "1"}, "skipped on request (FASTSSL_SKIP_CUDA=1)"),
        ({"FASTSSL_SKIP_BUILD": "1"}, "skipped on request (FASTSSL_SKIP_BUILD=1)"),
    ],
)
def test_without_nvcc_or_on_request_nothing_is_built(checkout, tmp_path, environment, reason):
    info, said = build(checkout, tmp_path, **environment)
    assert info["cuda"] == {"nvcc": None, "codes": [], "error": reason}
    assert said[-1] == f"fastssl: installing without the CUDA extension: {reason}"


@needs_sources
def test_the_code_is_for_what_nvcc_knows(checkout, tmp_path):
    """An older nvcc: PTX of its newest takes the place of what it does not know."""
    knows = VERSION.format("12.4", "12.4") + ARCHITECTURES.format("compute_80 compute_90")
    script = knows + 'echo "$@" >>"$0.calls"; while [ "$1" != -o ]; do shift; done; touch "$2" "$2.d"'
    home = fake_nvcc(tmp_path / "cuda", script)
    info, _ = build(checkout, tmp_path / "built", CUDA_HOME=home)
    assert info["cuda"] == {"nvcc": "V12.4.1", "codes": ["sm_80", "sm_90a", "compute_90a"], "error": None}
    calls = Path(home, "bin", "nvcc.calls").read_text()
    assert "-gencode=arch=compute_90a,code=compute_90a" in calls and "sm_100" not in calls


def test_a_missing_module_is_explained(monkeypatch):
    monkeypatch.setattr(_extension, "build_info", lambda module: {"error": "nvcc not found"})
    monkeypatch.setitem(sys.modules, "fastssl._CUDA", None)
    _extension._load.cache_clear()
    try:
        assert _extension.load("_CUDA") is None
        assert _extension.why_missing("_CUDA") == "the CUDA extension was not built: nvcc not found"
    finally:
        _extension._load.cache_clear()


def test_the_backend_can_be_forced_and_says_what_it_serves():
    x = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with fastssl.backend("cuda"):
        with pytest.raises(RuntimeError, match=r"'cuda' cannot serve torch.uint8 tensors on cpu: .* on CUDA devices"):
            fastssl.functional.augment_views(x, [torch.zeros(1, 8)], sizes=[(4, 4)], mean=[0.0] * 3, std=[1.0] * 3)
        with pytest.raises(RuntimeError, match="this family has no CUDA C"):
            fastssl.functional.nt_xent(torch.ones(4, 8), torch.ones(4, 8))
