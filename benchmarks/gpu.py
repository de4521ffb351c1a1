"""Everything that has to be known about the kernels on a CUDA machine, by one command::

    python benchmarks/gpu.py --out results        # from a checkout or from an installation
    python benchmarks/gpu.py --out results --sections verify ceilings --budget 120

Sections, in order; each writes ``DIR/<section>.json`` when it ends and keeps to its own time budget. The exit status is
1 if anything failed: a kernel that does not compile, a wrong or missing verification, a wrong result in a benchmark.

compile    every kernel that the other sections use, in parallel processes, into Triton's cache
verify     every operation, dtype and mode against float64 on fresh random inputs; twice, bit-equal; memory is filled
           with NaN before each call
ceilings   what the machine can do: a large copy, large products
nt_xent    times and peak memory of forward and forward + backward, against eager, compiled and chunked PyTorch (those
           of ``fastssl bench nt_xent``), and the time that the same products take at the measured ceiling. A wrong
           result gets no time

A new family adds a function to ``SECTIONS``: from its deadline and the results of the sections before it to a
dictionary, with the number of things that went wrong as ``failed``. The last lines are a short table.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any


def use_checkout() -> None:
    """Make ``fastssl`` and its sub-packages importable when this file runs from a checkout that is not installed."""
    if importlib.util.find_spec("fastssl") is not None and importlib.util.find_spec("fastssl.kernels") is not None:
        return
    root = Path(__file__).resolve().parent.parent
    sys.path.insert(0, str(root))
    for name in ("kernels", "benchmarks"):
        spec = importlib.util.spec_from_file_location(
            f"fastssl.{name}", root / name / "__init__.py", submodule_search_locations=[str(root / name)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)


use_checkout()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import fastssl  # noqa: E402
from fastssl.benchmarks import cases, nt_xent  # noqa: E402
from fastssl.benchmarks.pairwise_cases import Case, verify  # noqa: E402

NT_XENT = {"positives": "pair", "exclude_self": True}
TAU = 0.1
SIZES = (1024, 4096, 16384, 65536, 262144)  # images
DIMENSIONS = (128, 256, 512)
# Name -> dtype and torch.set_float32_matmul_precision
PRECISIONS = {
    "bf16": (torch.bfloat16, "highest"),
    "fp16": (torch.float16, "highest"),
    "fp32 high": (torch.float32, "high"),
    "fp32 highest": (torch.float32, "highest"),
}


# Relative error of a number that is rounded to an operand of the product.
OPERAND_EPS = {"bf16": 2.0**-7, "fp16": 2.0**-10, "fp32 high": 2.0**-10, "fp32 highest": 2.0**-23}

Results = dict[str, Any]  # of a section
Earlier = Mapping[str, Results]  # of the sections before it, by name


class Deadline:
    """The time budget of a section: seconds from now."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


@contextmanager
def precision(name: str) -> Iterator[torch.dtype]:
    """The dtype of a precision's name, with float32 products set accordingly inside the block."""
    dtype, float32 = PRECISIONS[name]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(float32)
    try:
        yield dtype
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fills what ``torch.empty`` returns with NaN inside the block."""
    empty = torch.empty

    def poisoned(*shape: Any, **options: Any) -> Tensor:
        out = empty(*shape, **options)
        return out.fill_(float("nan")) if out.is_floating_point() else out

    torch.empty = poisoned
    try:
        yield
    finally:
        torch.empty = empty


# ------------------------------------------------------------------------------------------------- compile, verify


def pairwise_cases(small: bool = False) -> list[tuple[str, dict[str, Any]]]:
    """(precision, arguments of Case) of everything that is verified; ``small``: the same kernels on tiny problems."""
    m, n = (70, 90) if small else (1111, 1500)
    cases: list[tuple[str, dict[str, Any]]] = []
    for name in PRECISIONS:
        for d in (24, 128, 256, 512, 800):
            cases.append((name, {"m": 64 if small else 2222, "d": d, "scale": 10.0, "rules": NT_XENT}))
        for d in (128, 512):
            cases.append((name, {"m": 64 if small else 2222, "d": d, "logit_scale": 2.0, "rules": NT_XENT}))
            rectangle = {"m": m, "n": n, "d": d, "weights": ("row", "row_positive", "col", "col_positive")}
            for positives in ("none", "diagonal", "pair", "key"):
                offsets = {"row_offset": 13, "col_offset": 4}
                cases.append((name, {**rectangle, "rules": {"positives": positives, **offsets}}))
            cases.append(
                (name, {**rectangle, "logit_scale": 1.5, "rules": {"positives": "diagonal", "exclude_positives": True}})
            )
            cases.append((name, {**rectangle, "weights": ("row",), "rules": {"normalize": False}, "scale": 0.5}))
            cases.append((name, {**rectangle, "weights": ("col", "col_positive"), "rules": {"positives": "key"}}))
    return cases


def _compile_case(job: tuple[str, dict[str, Any]]) -> None:
    from fastssl.ops.pairwise import triton

    name, arguments = job
    with precision(name) as dtype:
        case = Case(dtype=dtype, device="cuda", **arguments)
        case.logsum(triton, dtype)
        case.gradient(triton, dtype)


def _compile_nt_xent(job: tuple[str, int]) -> None:
    name, d = job
    with precision(name) as dtype:
        z0, z1 = views(64, d, dtype)
        nt_xent_fused(z0, z1).backward()


def _compile_job(job: tuple[str, Any]) -> str:
    kind, arguments = job
    try:
        (_compile_case if kind == "case" else _compile_nt_xent)(arguments)
    except Exception as error:  # reported by the section, and met again by the section that needs the kernel
        return f"{arguments}: {type(error).__name__}: {error}"[:2000]
    return ""


def compile_section(deadline: Deadline, earlier: Earlier) -> Results:
    jobs: list[tuple[str, Any]] = [("nt_xent", (name, d)) for d in DIMENSIONS for name in PRECISIONS]
    jobs += [("case", case) for case in pairwise_cases(small=True)]
    start = time.monotonic()
    # spawned, since a forked process cannot use CUDA
    with ProcessPoolExecutor(14, mp_context=get_context("spawn")) as pool:
        failures = [failure for failure in pool.map(_compile_job, jobs) if failure]
    for failure in failures:
        print("compile FAILED:", failure)
    return {"jobs": len(jobs), "seconds": time.monotonic() - start, "failed": len(failures), "failures": failures}


def verify_section(deadline: Deadline, earlier: Earlier) -> Results:
    from fastssl.ops.pairwise import triton

    rows = []
    jobs = pairwise_cases()
    for number, (name, arguments) in enumerate(jobs):
        if deadline.left < 0:
            print(f"verify FAILED: out of time after {number} of {len(jobs)} cases")
            break
        row: dict[str, Any] = {"precision": name, "case": {**arguments}}
        try:
            with precision(name) as dtype, poisoned_memory():
                case = Case(dtype=dtype, device="cuda", seed=1000 + number, **arguments)
                verdict = verify(case, triton)
                results = [(*case.logsum(triton, dtype), *case.gradient(triton, dtype)) for _ in range(2)]
            row["ratios"] = vars(verdict)
            row["repeatable"] = all(torch.equal(a, b) for a, b in zip(*results, strict=True))
            row["ok"] = verdict.worst <= 1 and row["repeatable"]
        except Exception as error:
            row |= {"ok": False, "error": f"{type(error).__name__}: {error}"[:2000]}
        if not row["ok"]:
            print("verify FAILED:", row)
        rows.append(row)
    special = special_values()
    missing = len(jobs) - len(rows)  # what was not verified does not count as right
    failed = missing + sum(not row["ok"] for row in rows + special)
    return {"cases": rows, "special": special, "missing": missing, "failed": failed}


def special_values() -> list[dict[str, Any]]:
    """NaN reaches every log-sum; huge logits stay finite."""
    from fastssl.ops.pairwise import triton

    out = []
    for name in PRECISIONS:
        for d in (128, 512):
            for logit_scale in (None, 1.0):
                with precision(name) as dtype:
                    case = Case(m=600, d=d, dtype=dtype, device="cuda", logit_scale=logit_scale, rules=NT_XENT)
                    case.q[9] = float("nan")
                    lse, positive = case.logsum(triton, dtype)
                    ok = bool(lse.isnan().all()) and positive.isnan().nonzero().flatten().tolist() == [8, 9]
                    ok = ok and bool(case.gradient(triton, dtype)[0].isnan().all())
                    out.append({"what": f"NaN row, {name}, D={d}, logit_scale={logit_scale}", "ok": ok})
        for sign in (1.0, -1.0):
            with precision(name) as dtype:
                k = torch.full((300, 128), sign * 10.0, device="cuda", dtype=dtype)
                q = torch.full((200, 128), 8.0, device="cuda", dtype=dtype)  # all logits are +-10240
                rules: dict[str, Any] = dict.fromkeys(("row_key", "col_key"))
                rules |= dict.fromkeys(("row_offset", "col_offset"), 0)
                rules |= dict.fromkeys(("normalize", "exclude_self", "exclude_positives"), False)
                lse, _ = triton.pairwise_logsumexp(q, k, None, scale=1.0, positives="none", **rules)
                ok = bool((lse - (sign * 10240 + math.log(300))).abs().max() < 0.05)
                out.append({"what": f"logits {sign * 10240:.0f}, {name}", "ok": ok})
    for row in out:
        if not row["ok"]:
            print("verify FAILED:", row["what"])
    return out


# --------------------------------------------------------------------------------------------------------- timing


def time_calls(run: Callable[[], object], seconds: float = 0.25, most: int = 30) -> float:
    """Median seconds of a call on the device, by events; the caller has run it once before."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    once = time.perf_counter() - start
    calls = max(2, min(most, int(seconds / max(once, 1e-6))))
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(calls)]
    for begin, end in events:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events) * 1e-3


def peak_memory(run: Callable[[], object]) -> int:
    """Bytes that a call allocates at its peak, above what was allocated before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def ceilings_section(deadline: Deadline, earlier: Earlier) -> Results:
    size = 8192
    out: dict[str, Any] = {}
    for name in PRECISIONS:
        with precision(name) as dtype:
            a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
            torch.mm(a, b)
            out[f"product {name}"] = 2 * size**3 / time_calls(partial(torch.mm, a, b))
    source = torch.randn(1 << 30, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    out["copy"] = 2 * source.nbytes / time_calls(lambda: target.copy_(source))
    return out


# -------------------------------------------------------------------------------------------------------- NT-Xent


def views(n: int, d: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two correlated views, as a projector gives after some training."""
    generator = torch.Generator("cuda").manual_seed(seed)
    image = torch.randn(n, d, device="cuda", generator=generator)
    other = image + 0.5 * torch.randn(n, d, device="cuda", generator=generator)
    z0, z1 = (view.to(dtype).requires_grad_() for view in (image, other))
    return z0, z1


def nt_xent_fused(z0: Tensor, z1: Tensor) -> Tensor:
    with fastssl.backend("triton"):
        return fastssl.functional.nt_xent(z0, z1, TAU)


def as_benchmarked(provider: str, z0: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """A baseline of ``fastssl bench nt_xent`` for inputs of this shape, dtype and device.

    Eager and compiled take 16-bit inputs under autocast, which keeps the log-sum in float32: in 16 bits throughout
    their errors would be no yardstick.
    """
    if z0.dtype in nt_xent.LOW_PRECISION and provider != "chunked":
        provider += "-autocast"
    sizes = {"N": float(z0.shape[0]), "D": float(z0.shape[1]), "temperature": TAU}
    return nt_xent.PROVIDERS[provider].build(cases.Case(sizes, z0.dtype, z0.device.type))


def loss_and_gradient(loss: Callable[[Tensor, Tensor], Tensor], z0: Tensor, z1: Tensor) -> tuple[Tensor, Tensor]:
    value = loss(z0, z1)
    return value.detach(), torch.cat(torch.autograd.grad(value, (z0, z1)))


class Truth:
    """Loss and some rows of the gradient in float64, a block of rows at a time.

    For more than 150 000 rows the log-sums of all rows, which loss and gradient need, are computed in float32: in
    float64 they would take longer than everything else.
    """

    ROWS = 256

    def __init__(self, z0: Tensor, z1: Tensor) -> None:
        z = torch.cat((z0.detach(), z1.detach())).double()
        n, m = z0.shape[0], 2 * z0.shape[0]
        norm = z.norm(dim=1, keepdim=True)
        unit = z / norm
        self.rows = torch.randperm(m, generator=torch.Generator().manual_seed(1))[: self.ROWS].to(z.device)
        if m <= 150_000:
            lse = torch.cat([self._lse(unit, i) for i in torch.arange(m, device=z.device).split(4096)])
        else:
            unit32 = unit.float()
            with precision("fp32 highest"):
                lse = torch.cat([self._lse(unit32, i) for i in torch.arange(m, device=z.device).split(2048)]).double()
        positive = (unit[:n] * unit[n:]).sum(1).mean() / TAU
        self.loss = (lse.mean() - positive).item()
        # Sums of the absolute values of the terms over the results: how much rounding errors grow by cancellation.
        self.loss_gain = (lse.abs().mean() + positive.abs()).item() / abs(self.loss)
        here = self.rows
        logits = unit[here] @ unit.T / TAU
        g = (logits - lse[here, None]).exp() + (logits - lse[None, :]).exp()
        g[torch.arange(len(here)), here] = 0
        terms = g.clone()
        terms[torch.arange(len(here)), (here + n) % m] += 2
        terms = terms @ unit.abs() / (TAU * m) / norm[here]
        g[torch.arange(len(here)), (here + n) % m] -= 2
        through = g @ unit / (TAU * m)
        self.gradient = (through - (through * unit[here]).sum(1, keepdim=True) * unit[here]) / norm[here]
        self.gradient_gain = (terms.norm() / self.gradient.norm()).item()

    @staticmethod
    def _lse(unit: Tensor, rows: Tensor) -> Tensor:
        logits = unit[rows] @ unit.T / TAU
        logits[torch.arange(len(rows)), rows] = -torch.inf
        return logits.logsumexp(1)

    def errors(self, loss: Tensor, gradient: Tensor) -> tuple[float, float]:
        """Relative errors of the loss and of the gradient's rows (norm of the difference over norm)."""
        difference = (gradient[self.rows].double() - self.gradient).norm() / self.gradient.norm()
        return abs(loss.item() - self.loss) / abs(self.loss), difference.item()


def nt_xent_section(deadline: Deadline, earlier: Earlier) -> Results:
    products = earlier.get("ceilings") or ceilings_section(deadline, earlier)
    rows: list[dict[str, Any]] = []
    # The error that eager makes at a precision and dimension, at a size where it fits.
    eager_errors: dict[tuple[str, int], tuple[float, float]] = {}
    free = torch.cuda.mem_get_info()[0]
    for n in SIZES:
        for name in PRECISIONS:
            for d in DIMENSIONS:
                if deadline.left < 0:
                    break
                with precision(name) as dtype:
                    z0, z1 = views(n, d, dtype)
                    m = 2 * n
                    work = m * m * d / products[f"product {name}"]
                    if 40 * 5 * work > deadline.left:
                        continue
                    truth = Truth(z0, z1)
                    eager = as_benchmarked("eager", z0)
                    if (name, d) not in eager_errors:
                        eager_errors[name, d] = truth.errors(*loss_and_gradient(eager, z0, z1))
                    providers: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"fastssl": nt_xent_fused}
                    if m * m * 16 < 0.8 * free:
                        providers["eager"] = eager
                        if n <= 16384 and d == 128 and name in ("bf16", "fp32 high") and deadline.left > 120:
                            torch._dynamo.reset()
                            providers["compiled"] = as_benchmarked("compiled", z0)
                    if n <= 65536 and (n < 65536 or d == 128):
                        providers["chunked"] = as_benchmarked("chunked", z0)
                    for provider, loss in providers.items():
                        row: dict[str, Any] = {"provider": provider, "precision": name, "N": n, "D": d}
                        row |= {"floor_forward_s": work, "floor_both_s": 5 * work}
                        try:
                            bounds = allowed_errors(provider, name, z0, truth, eager_errors[name, d])
                            row |= time_nt_xent(loss, z0, z1, truth, bounds)
                        except Exception as error:
                            row["error"] = f"{type(error).__name__}: {error}"[:500]
                            torch.cuda.empty_cache()
                        rows.append(row)
                        print(line_of(row), flush=True)
    # A baseline may run out of memory or not compile; wrong it may not be, and fastssl has to run.
    failed = sum("error" in row and (row.get("wrong", False) or row["provider"] == "fastssl") for row in rows)
    return {"temperature": TAU, "ceilings": products, "rows": rows, "failed": failed}


def allowed_errors(
    provider: str, name: str, z0: Tensor, truth: Truth, eager: tuple[float, float]
) -> tuple[float, float]:
    """Bounds on what ``Truth.errors`` returns, from eager's errors at the same precision."""
    eps = torch.finfo(torch.float32).eps
    # The loss is one number, and eager's error in it can be small by luck. What the rounding of the rows alone does to
    # it is a mean of independent errors: of n d products of two elements, each with a relative error of `by_luck`.
    n, d = z0.shape
    by_luck = 3 * OPERAND_EPS[name] / (TAU * math.sqrt(n * d)) / abs(truth.loss)
    loss = 2 * eager[0] + 8 * eps * truth.loss_gain + by_luck
    gradient = 2 * eager[1] + 8 * eps * truth.gradient_gain + torch.finfo(z0.dtype).eps
    if provider != "fastssl":  # the others round logits too, to the dtype that their product returns
        loss += OPERAND_EPS[name] * truth.loss_gain
        gradient += OPERAND_EPS[name] * truth.gradient_gain
    return loss, gradient


def time_nt_xent(
    loss: Callable[[Tensor, Tensor], Tensor], z0: Tensor, z1: Tensor, truth: Truth, allowed: tuple[float, float]
) -> dict[str, Any]:
    errors = truth.errors(*loss_and_gradient(loss, z0, z1))
    row: dict[str, Any] = {"loss_error": errors[0], "gradient_error": errors[1]}
    if not all(error <= bound for error, bound in zip(errors, allowed, strict=True)):
        return {**row, "wrong": True, "error": f"wrong result: errors {errors}, allowed {allowed}"}

    def forward() -> Tensor:
        with torch.no_grad():
            return loss(z0, z1)

    def both() -> object:
        return torch.autograd.grad(loss(z0, z1), (z0, z1))

    forward()
    return {
        **row,
        "forward_s": time_calls(forward),
        "both_s": time_calls(both),
        "forward_bytes": peak_memory(forward),
        "both_bytes": peak_memory(both),
    }


def line_of(row: dict[str, Any]) -> str:
    start = f"{row['provider']:<9} {row['precision']:<12} N {row['N']:>6} D {row['D']:>3}  "
    if "error" in row:
        return start + row["error"][:160]
    return start + (
        f"fwd {row['forward_s'] * 1e3:9.3f} ms ({row['floor_forward_s'] / row['forward_s']:4.0%})  "
        f"both {row['both_s'] * 1e3:9.3f} ms ({row['floor_both_s'] / row['both_s']:4.0%})  "
        f"peak {row['both_bytes'] / 2**20:9.1f} MiB  grad err {row['gradient_error']:.1e}"
    )


# ----------------------------------------------------------------------------------------------------------- main

# Name -> (function, default budget in seconds).
SECTIONS: dict[str, tuple[Callable[[Deadline, Earlier], Results], float]] = {
    "compile": (compile_section, 120),
    "verify": (verify_section, 90),
    "ceilings": (ceilings_section, 20),
    "nt_xent": (nt_xent_section, 270),
}


def machine() -> dict[str, Any]:
    import triton

    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "fastssl": fastssl.__version__,
        "command": " ".join(sys.argv),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder for the JSON files")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--budget", type=float, help="seconds per section instead of each one's own")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu.py: no CUDA device is visible to PyTorch", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = []
    results: dict[str, Results] = {}
    for name in arguments.sections:
        section, budget = SECTIONS[name]
        start = time.monotonic()
        results[name] = result = section(Deadline(arguments.budget or budget), results)
        seconds = time.monotonic() - start
        payload = {"machine": machine(), "section": name, "seconds": seconds, **result}
        (arguments.out / f"{name}.json").write_text(json.dumps(payload, indent=1, default=str))
        table.append(summary(name, seconds, result))
        print(table[-1], flush=True)
    print("\n".join(["", "summary", *table]))
    return 1 if any(result.get("failed") for result in results.values()) else 0


def summary(name: str, seconds: float, result: Results) -> str:
    start = f"{name:<9} {seconds:5.0f} s  "
    if name == "verify":
        done = len(result["cases"]) + len(result["special"])
        return start + f"{done} cases, {result['failed'] - result['missing']} failed, {result['missing']} not reached"
    if name == "compile":
        return start + f"{result['jobs']} jobs, {result['failed']} failed"
    if name == "ceilings":
        return start + "  ".join(f"{key} {value / 1e12:.1f} T" for key, value in result.items())
    untimed = sum("error" in row for row in result["rows"])
    return start + f"{len(result['rows'])} rows, {untimed} without a time, {result['failed']} failed"


if __name__ == "__main__":
    sys.exit(main())
