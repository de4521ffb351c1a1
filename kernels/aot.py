"""Compile kernels ahead of time for any NVIDIA architecture, without a GPU, and report what the code uses.

``report(variant, capability)`` answers what is asked of every kernel before it is timed: how many registers, does it
spill, does it use the tensor cores. Triton's package carries the assembler and the disassembler. Each family lists the
variants that it ships in ``<family>/aot.py``; this file knows none of them::

    python -m fastssl.kernels.aot                # every shipped variant for sm_80, sm_90, sm_100
    python -m fastssl.kernels.aot 90 gradient    # one architecture, variants whose name contains "gradient"
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CAPABILITIES = (80, 90, 100)


@dataclass(frozen=True)
class Variant:
    """One specialisation of a kernel: everything that Triton needs to know to compile it.

    ``kernel`` is "family.module:function" inside ``fastssl.kernels``: a name, so that a variant travels between
    processes. ``signature`` gives the type of every argument that is not a constant ("*bf16", "i32", "fp32");
    arguments in neither are compiled as None. Pointers, and the integers in ``divisible``, are multiples of 16, as at
    run time.
    """

    name: str
    kernel: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int
    stages: int
    divisible: tuple[str, ...] = ()
    tensor_cores: bool = True  # whether the code must contain tensor-core instructions


@dataclass(frozen=True)
class Report:
    """What the machine code of a variant uses."""

    name: str
    capability: int
    registers: int
    stack: int  # bytes per thread: above 0 means spills, for which all local memory is
    shared: int  # bytes per program
    warps: int
    counts: Mapping[str, int] = field(default_factory=dict)  # instructions in SASS by kind; empty if not disassembled

    @property
    def tensor_core_instructions(self) -> int:
        return sum(self.counts[kind] for kind in ("mma", "wgmma", "tcgen05"))

    @property
    def spills(self) -> bool:
        return self.stack > 0 or self.counts.get("local", 0) > 0

    def __str__(self) -> str:
        counts = " ".join(f"{kind} {n}" for kind, n in self.counts.items() if n)
        return (
            f"{self.name:<46} sm_{self.capability:<3} regs {self.registers:>3}  stack {self.stack:>4}  "
            f"smem {self.shared:>6}  warps {self.warps}  {counts}"
        )


_SASS_PATTERNS = {
    "mma": r"\bHMMA",
    "wgmma": r"\bHGMMA",
    "tcgen05": r"\bUTC\w*MMA",
    "exp2": r"\bMUFU\.EX2",
    "shuffle": r"\bSHFL",
    "async_copy": r"\bLDGSTS|\bUTMALDG",
    "local": r"\bLDL|\bSTL",
}


def compile_variant(variant: Variant, capability: int) -> Any:
    """Triton's compiled kernel for an architecture (80: sm_80). Needs no GPU and no driver."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, function = variant.kernel.split(":")
    kernel = getattr(importlib.import_module(f"{__package__}.{module}"), function)
    names = list(kernel.arg_names)
    unknown = (set(variant.signature) | set(variant.constants)) - set(names)
    if unknown:
        raise ValueError(f"{variant.name}: {variant.kernel} has no arguments named {sorted(unknown)}")
    constants = {name: None for name in names if name not in variant.signature} | dict(variant.constants)
    aligned = [
        i
        for i, name in enumerate(names)
        if name in variant.divisible or variant.signature.get(name, "").startswith("*")
    ]
    source = ASTSource(
        kernel,
        signature={name: variant.signature.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options = {"num_warps": variant.warps, "num_stages": variant.stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def disassembler() -> Path:
    """The cuobjdump in Triton's package.

    Raises:
        FileNotFoundError: when this version of Triton does not carry it.
    """
    import triton

    path = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not path.is_file():
        raise FileNotFoundError(f"Triton {triton.__version__} carries no cuobjdump at {path}; a report needs it")
    return path


def report(variant: Variant, capability: int, disassembled: bool = True) -> Report:
    """Compiles a variant and reads registers, stack, shared memory and instruction counts off the machine code.

    Disassembling takes as long as compiling a small kernel; without it instructions are not counted.
    """
    compiled = compile_variant(variant, capability)
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder, "kernel.cubin")
        binary.write_bytes(compiled.asm["cubin"])

        def dump(option: str) -> str:
            command = [str(disassembler()), option, str(binary)]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        usage = re.search(r"REG:(\d+) STACK:(\d+) \S+ LOCAL:(\d+)", dump("-res-usage"))
        assert usage is not None, "cuobjdump -res-usage prints REG, STACK, SHARED and LOCAL"
        sass = dump("-sass") if disassembled else None
    return Report(
        name=variant.name,
        capability=capability,
        registers=int(usage[1]),
        stack=int(usage[2]) + int(usage[3]),
        shared=compiled.metadata.shared,
        warps=compiled.metadata.num_warps,
        counts={} if sass is None else {kind: len(re.findall(rule, sass)) for kind, rule in _SASS_PATTERNS.items()},
    )


def shipped_variants(major: int) -> list[Variant]:
    """The variants of every family for an architecture (8, 9, 10)."""
    folders = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.ispkg]
    modules = [importlib.import_module(f"{__package__}.{name}.aot") for name in folders]
    return [variant for module in modules for variant in module.variants(major)]


def covering(jobs: Sequence[tuple[Variant, int]]) -> list[tuple[Variant, int]]:
    """Few of these (variant, capability) pairs that show most of what all of them show.

    They have every kernel, every value of every constant, every type of every argument, and every number of warps and
    stages that a kernel is compiled with; kernels with tensor cores, of which Triton makes different code for each
    architecture, have all of that on each of them. What is left out are combinations.
    """
    shown = [_shows(*job) for job in jobs]
    missing = set().union(*shown)
    chosen = set()
    while missing:
        best = max(range(len(jobs)), key=lambda i: len(shown[i] & missing))
        chosen.add(best)
        missing -= shown[best]
    return [jobs[i] for i in sorted(chosen)]


def _shows(variant: Variant, capability: int) -> set[tuple[Any, ...]]:
    properties = {
        **variant.signature, **variant.constants, "warps": variant.warps, "stages": variant.stages,
        "aligned": bool(variant.divisible),
    }  # fmt: skip
    where = variant.kernel, capability if variant.tensor_cores else None
    return {where, *((*where, name, value) for name, value in properties.items())}


def main(arguments: list[str]) -> None:
    capabilities = [int(a) for a in arguments if a.isdigit()] or list(CAPABILITIES)
    words = [a for a in arguments if not a.isdigit()]
    jobs = [
        (variant, capability)
        for capability in capabilities
        for variant in shipped_variants(capability // 10)
        if all(word in variant.name for word in words)
    ]
    with ProcessPoolExecutor() as pool:
        for line in pool.map(report, *zip(*jobs, strict=True)):
            print(line, "SPILLS" if line.spills else "", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
