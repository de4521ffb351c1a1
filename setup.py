"""Builds the C++ and the CUDA extension with ninja. Everything else about the package stands in pyproject.toml.

Both are optional: where one cannot be built the installation succeeds without it, says why in one line, and records
the reason in fastssl/_build_info.json, which `fastssl info` reads. FASTSSL_SKIP_BUILD=1 asks for exactly that,
FASTSSL_SKIP_CUDA=1 for the CUDA extension alone. It is built where nvcc is on the PATH or under CUDA_HOME.

FASTSSL_BUILD_DIR names a folder that keeps the objects: a later installation from the same checkout, wherever it goes,
compiles what has changed since. One build at a time, and a new folder for a new compiler.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()

# -ffast-math is left out on purpose: NaN has to come through.
CXX_FLAGS = [
    "-std=c++17",
    "-O3",
    "-DNDEBUG",
    "-fPIC",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
]

AVX2_FLAGS = ["-mavx2", "-mfma"]
AVX512_FLAGS = [*AVX2_FLAGS, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]

# Instruction sets beyond the baseline, each its own translation unit. What the compiler does not know is left out.
X86_ISAS = {
    "avx2": AVX2_FLAGS,
    "avx512": AVX512_FLAGS,
    "avx512_bf16": [*AVX512_FLAGS, "-mavx512bf16"],
}

NVCC_FLAGS = [
    "-std=c++17",
    "-O3",
    "-DNDEBUG",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-fvisibility-inlines-hidden,-Wall,-Wextra",
    "--threads=2",  # GPU generations at a time
]

# GPU generations that get machine code, where the compiler knows them. Others get what their driver makes of the
# newest one's PTX.
CUDA_ARCHITECTURES = ["80", "90a", "100"]


class BuildError(Exception):
    """An extension cannot be built here; the message says why."""


class Toolchain:
    """The C++ compiler and what it turned out to accept."""

    def __init__(self) -> None:
        self.compiler = self._find_compiler()  # the command's words: CXX may be "ccache g++" or "g++ -pthread"
        if not self.accepts(["-std=c++17"]):
            raise BuildError(f"{shlex.join(self.compiler)} does not compile a C++17 program (set CXX)")
        self.openmp = self.accepts(["-fopenmp"], "#include <omp.h>\nint main() { return omp_get_num_threads() - 1; }")
        self.flags = CXX_FLAGS + (["-fopenmp"] if self.openmp else [])
        self.isas = {"baseline": []}
        if platform.machine().lower() in ("x86_64", "amd64"):
            for name, flags in X86_ISAS.items():
                asked = " && ".join(f'__builtin_cpu_supports("{flag[2:]}")' for flag in flags)
                if not self.accepts(flags, f"int main() {{ return {asked}; }}"):  # csrc/cpu/isa.cpp asks this
                    break  # each one needs those before it
                self.isas[name] = flags

    def _find_compiler(self) -> list[str]:
        try:
            wanted = shlex.split(os.environ.get("CXX", ""))
        except ValueError as error:
            raise BuildError(f"CXX is not a command: {error}") from None
        candidates = [wanted] if wanted else [["g++"], ["clang++"], ["c++"]]
        for command in candidates:
            if shutil.which(command[0]) is not None:
                return command
        names = ", ".join(command[0] for command in candidates)
        raise BuildError(f"no C++ compiler found (looked for {names}; set CXX)")

    def accepts(self, flags: list[str], program: str = "int main() { return 0; }") -> bool:
        """Whether a program compiles and links with these flags."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.cpp")
            source.write_text(program)
            command = [*self.compiler, *flags, str(source), "-o", str(Path(folder, "probe"))]
            return subprocess.run(command, capture_output=True).returncode == 0

    def version(self) -> str:
        result = subprocess.run([*self.compiler, "--version"], capture_output=True, text=True)
        return (result.stdout.splitlines() or ["unknown"])[0]


def find_ninja() -> str:
    try:
        import ninja
    except ImportError:
        path = shutil.which("ninja")
        if path is None:
            raise BuildError("ninja not found (pip install ninja)") from None
        return path
    return str(Path(ninja.BIN_DIR, "ninja"))


def ninja_path(path: object) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def ninja_words(words: list[str]) -> str:
    """Words of a command, for the shell that ninja calls."""
    return shlex.join(words).replace("$", "$$")


def write_ninja_file(path: Path, output: Path, variables: dict[str, list[str]], builds: dict[Path, list[str]]) -> None:
    """One object for each source in `builds`, with its own flags, and the module that they are linked to.

    Args:
        path: of the ninja file; objects lie beside it.
        output: of the module.
        variables: words of `compiler`, `flags` and `link_flags`.
        builds: flags of each source file under csrc/.
    """
    lines = [
        "ninja_required_version = 1.5",
        *(f"{name} = {ninja_words(words)}" for name, words in variables.items()),
        "rule compile",
        "  command = $compiler -MD -MF $out.d $flags $own_flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $in",
        "rule link",
        "  command = $compiler $in $link_flags -o $out",
        "  description = link $out",
    ]
    objects = []
    for source, flags in builds.items():
        # By relative path: two families may have files of the same name.
        target = ninja_path(source.relative_to(ROOT / "csrc").with_suffix(".o").as_posix())
        # Python's headers lie elsewhere in every environment: the kernels, which know nothing of it, stay as they are.
        own_flags = [*flags, *(python_flags() if source.name == "bindings.cpp" else [])]
        lines += [f"build {target}: compile {ninja_path(source)}", f"  own_flags = {ninja_words(own_flags)}"]
        objects.append(target)
    lines += [f"build {ninja_path(output)}: link {' '.join(objects)}", f"default {ninja_path(output)}", ""]
    path.write_text("\n".join(lines))


def run_ninja(folder: Path, output: Path, variables: dict[str, list[str]], builds: dict[Path, list[str]]) -> None:
    ninja = find_ninja()
    folder.mkdir(parents=True, exist_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_ninja_file(folder / "build.ninja", output.resolve(), variables, builds)
    result = subprocess.run([ninja, "-C", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    sys.stdout.write(result.stdout)
    if result.returncode != 0:
        errors = [line for line in result.stdout.splitlines() if "error" in line.lower()]
        raise BuildError("compilation failed: " + (errors or result.stdout.splitlines() or ["ninja failed"])[0])


def python_flags() -> list[str]:
    """Where a Python module finds its headers."""
    try:
        import pybind11
    except ImportError:
        raise BuildError("pybind11 not found (pip install pybind11)") from None
    return [f"-I{folder}" for folder in (sysconfig.get_path("include"), pybind11.get_include())]


def check_wanted(variable: str) -> None:
    if os.environ.get(variable) == "1":
        raise BuildError(f"skipped on request ({variable}=1)")
    if sys.platform == "win32":
        raise BuildError("Windows is not supported")


def compile_cpp(folder: Path, output: Path) -> dict[str, object]:
    """Builds fastssl._C at `output`; returns what to record. BuildError or OSError say why that cannot be done.

    A file named <family>_<isa>.cpp is compiled for that instruction set.
    """
    check_wanted("FASTSSL_SKIP_BUILD")
    tools = Toolchain()
    builds = {}
    for source in sorted({*(ROOT / "csrc").rglob("*.cpp")} - {*(ROOT / "csrc" / "cuda").rglob("*.cpp")}):
        isa = next((name for name in sorted(X86_ISAS, key=len, reverse=True) if source.stem.endswith("_" + name)), "")
        if not isa or isa in tools.isas:
            builds[source] = tools.isas.get(isa, [])
    have = [f"-DFASTSSL_HAVE_{isa.upper()}" for isa in tools.isas if isa != "baseline"]
    shared = ["-dynamiclib", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
    variables = {
        "compiler": tools.compiler,
        "flags": [*tools.flags, *have, f"-I{ROOT / 'csrc'}"],
        "link_flags": [*shared, *(["-fopenmp"] if tools.openmp else [])],
    }
    run_ninja(folder, output, variables, builds)
    return {
        "compiler": tools.version(),
        "flags": tools.flags,
        "isas": list(tools.isas),
        "openmp": tools.openmp,
    }


def find_nvcc() -> str:
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if home and shutil.which("nvcc", path=str(Path(home, "bin"))):
            return str(Path(home, "bin", "nvcc"))
    path = shutil.which("nvcc")
    if path is None:
        raise BuildError("nvcc not found (looked in CUDA_HOME and on the PATH)")
    return path


def ask_nvcc(nvcc: str, question: str) -> str:
    result = subprocess.run([nvcc, question], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        raise BuildError(f"{nvcc} {question} failed: {(result.stdout.splitlines() or ['no message'])[0]}")
    return result.stdout


def compile_cuda(folder: Path, output: Path) -> dict[str, object]:
    """Builds fastssl._CUDA at `output`, like `compile_cpp`. It depends on no version of torch."""
    check_wanted("FASTSSL_SKIP_BUILD")
    check_wanted("FASTSSL_SKIP_CUDA")
    nvcc = find_nvcc()
    version = re.search(r"release (\d+)\S*, (\S+)", ask_nvcc(nvcc, "--version"))
    if version is None or int(version[1]) < 12:
        raise BuildError(f"{nvcc} is no CUDA 12 or newer")
    known = ask_nvcc(nvcc, "--list-gpu-arch").split()
    found = [name for name in CUDA_ARCHITECTURES if f"compute_{name.rstrip('a')}" in known]
    if not found:
        raise BuildError(f"{nvcc} knows none of the architectures {', '.join(CUDA_ARCHITECTURES)}")
    codes = [(name, f"sm_{name}") for name in found] + [(found[-1], f"compute_{found[-1]}")]
    variables = {
        "compiler": [nvcc],
        "flags": [
            *NVCC_FLAGS,
            *(f"-gencode=arch=compute_{arch},code={code}" for arch, code in codes),
            f"-I{ROOT / 'csrc'}",
        ],
        "link_flags": ["-shared", "-cudart=static", "-Xlinker=--exclude-libs,ALL"],
    }
    sources = [*(ROOT / "csrc" / "cuda").rglob("*.cu"), *(ROOT / "csrc" / "cuda").rglob("*.cpp")]
    run_ninja(folder, output, variables, {source: [] for source in sorted(sources)})
    return {"nvcc": version[2], "codes": [code for _, code in codes]}


class NinjaBuild(build_ext):
    """build_ext that compiles with ninja and never fails the installation."""

    def run(self) -> None:
        in_place = self.inplace or self.editable_mode
        info: dict[str, object] = {"compiler": None, "flags": [], "isas": [], "openmp": False, "error": None}
        info.update(self._build("fastssl._C", "C++ extension", compile_cpp))
        cuda: dict[str, object] = {"nvcc": None, "codes": [], "error": None}
        info["cuda"] = {**cuda, **self._build("fastssl._CUDA", "CUDA extension", compile_cuda)}
        package = ROOT / "fastssl" if in_place else Path(self.build_lib, "fastssl")
        package.mkdir(parents=True, exist_ok=True)
        (package / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")

    def _build(self, name: str, what: str, compiled: Callable[[Path, Path], dict[str, object]]) -> dict[str, object]:
        """What to record of one extension, with the error where there is one."""
        output = Path(self.get_ext_fullpath(name))
        folder = Path(os.environ.get("FASTSSL_BUILD_DIR") or self.build_temp)
        try:
            return compiled(folder.resolve() / name, output)
        except (BuildError, OSError) as error:
            output.unlink(missing_ok=True)  # not a stale one from an earlier build
            print(f"fastssl: installing without the {what}: {error}", file=sys.stderr)
            self.extensions = [extension for extension in self.extensions if extension.name != name]
            return {"error": str(error)}

    def get_output_mapping(self) -> dict[str, str]:
        return {}  # run() writes to the final place, also for an editable installation


# Two folders at the top are subpackages of fastssl when installed.
MOVED = {"fastssl.kernels": "kernels", "fastssl.benchmarks": "benchmarks"}


def packages() -> list[str]:
    found = find_packages(str(ROOT), include=["fastssl", "fastssl.*"])
    for name, folder in MOVED.items():
        found += [name, *(f"{name}.{inner}" for inner in find_packages(str(ROOT / folder)))]
    return found


setup(
    packages=packages(),
    package_dir=MOVED,
    package_data={"fastssl": ["py.typed", "_build_info.json", "configs/*.yaml"]},
    ext_modules=[Extension("fastssl._C", sources=[]), Extension("fastssl._CUDA", sources=[])],
    cmdclass={"build_ext": NinjaBuild},
)
