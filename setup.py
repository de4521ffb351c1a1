"""Builds the C++ extension with ninja. Everything else about the package stands in pyproject.toml.

The extension is optional: where it cannot be built the installation succeeds without it, says why in one line, and
records the reason in fastssl/_build_info.json, which `fastssl info` reads. FASTSSL_SKIP_BUILD=1 asks for exactly that.
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
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


class BuildError(Exception):
    """The extension cannot be built here; the message says why."""


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


def write_ninja_file(path: Path, tools: Toolchain, output: Path) -> None:
    """One object per source file under csrc/; a file named <family>_<isa>.cpp is compiled for that instruction set."""
    try:
        import pybind11
    except ImportError:
        raise BuildError("pybind11 not found (pip install pybind11)") from None
    root = ROOT / "csrc"
    includes = [f"-I{folder}" for folder in (sysconfig.get_path("include"), pybind11.get_include(), root)]
    have = [f"-DFASTSSL_HAVE_{isa.upper()}" for isa in tools.isas if isa != "baseline"]
    shared = ["-dynamiclib", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
    lines = [
        "ninja_required_version = 1.5",
        f"cxx = {ninja_words(tools.compiler)}",
        f"flags = {ninja_words([*tools.flags, *have, *includes])}",
        f"link_flags = {ninja_words([*shared, *(['-fopenmp'] if tools.openmp else [])])}",
        "rule compile",
        "  command = $cxx -MMD -MF $out.d $flags $isa_flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = C++ $in",
        "rule link",
        "  command = $cxx $in $link_flags -o $out",
        "  description = link $out",
    ]
    objects = []
    # CUDA sources (csrc/**/*.cu) join here, with their own rule, where nvcc is found.
    for source in sorted(root.rglob("*.cpp")):
        isa = next((name for name in sorted(X86_ISAS, key=len, reverse=True) if source.stem.endswith("_" + name)), "")
        if isa and isa not in tools.isas:
            continue
        # By relative path: two families may have files of the same name.
        target = ninja_path(source.relative_to(root).with_suffix(".o").as_posix())
        lines += [
            f"build {target}: compile {ninja_path(source)}",
            f"  isa_flags = {ninja_words(tools.isas.get(isa, []))}",
        ]
        objects.append(target)
    lines += [f"build {ninja_path(output)}: link {' '.join(objects)}", f"default {ninja_path(output)}", ""]
    path.write_text("\n".join(lines))


def compile_extension(folder: Path, output: Path) -> dict[str, object]:
    """Builds the module at `output`; returns what to record. BuildError or OSError say why that cannot be done."""
    if os.environ.get("FASTSSL_SKIP_BUILD") == "1":
        raise BuildError("skipped on request (FASTSSL_SKIP_BUILD=1)")
    if sys.platform == "win32":
        raise BuildError("Windows is not supported")
    tools = Toolchain()
    ninja = find_ninja()
    folder.mkdir(parents=True, exist_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_ninja_file(folder / "build.ninja", tools, output.resolve())
    result = subprocess.run([ninja, "-C", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    sys.stdout.write(result.stdout)
    if result.returncode != 0:
        errors = [line for line in result.stdout.splitlines() if "error" in line.lower()]
        raise BuildError("compilation failed: " + (errors or result.stdout.splitlines() or ["ninja failed"])[0])
    return {
        "compiler": tools.version(),
        "flags": tools.flags,
        "isas": list(tools.isas),
        "openmp": tools.openmp,
    }


class NinjaBuild(build_ext):
    """build_ext that compiles with ninja and never fails the installation."""

    def run(self) -> None:
        in_place = self.inplace or self.editable_mode
        extension = self.extensions[0]
        output = Path(self.get_ext_fullpath(extension.name))
        info: dict[str, object] = {"compiler": None, "flags": [], "isas": [], "openmp": False, "error": None}
        try:
            info.update(compile_extension(Path(self.build_temp).resolve(), output))
        except (BuildError, OSError) as error:
            info["error"] = str(error)
            output.unlink(missing_ok=True)  # not a stale one from an earlier build
            print(f"fastssl: installing without the C++ extension: {error}", file=sys.stderr)
            self.extensions = []
        package = ROOT / "fastssl" if in_place else Path(self.build_lib, "fastssl")
        package.mkdir(parents=True, exist_ok=True)
        (package / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")

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
    ext_modules=[Extension("fastssl._C", sources=[])],
    cmdclass={"build_ext": NinjaBuild},
)
