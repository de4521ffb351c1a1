"""``fastssl info``: what is installed, what this machine can do, and which backend each operation takes and why."""

from __future__ import annotations

import argparse
import itertools
import json
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report (with ``--json``: as a document). Returns 0; 2 for a wrong command line."""
    parser = argparse.ArgumentParser(prog="fastssl info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print a JSON document")
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    document = collect()
    print(json.dumps(document, indent=1) if arguments.json else as_text(document))
    return 0


def collect() -> dict[str, Any]:
    """Everything that the command prints."""
    from .. import backends, environment

    return {
        **environment.record(),
        "cuda_extension": cuda_extension(),
        "forced_backend": backends.forced() or None,
        "operations": operations(),
    }


def cuda_extension() -> dict[str, Any]:
    """The compiled CUDA kernels: compiler, codes for GPUs and CUDA's versions, or why they are missing."""
    from .. import _extension

    built = _extension.build_info("_CUDA")
    about = {"nvcc": built.get("nvcc"), "codes": built.get("codes")}
    module = _extension.load("_CUDA")
    if module is None:
        return {"available": False, "reason": _extension.why_missing("_CUDA"), **about}
    return {"available": True, **about, **module.info()}


def operations() -> list[dict[str, Any]]:
    """For each operation, device type and dtype: the backend that serves it here, and why the others before it do not.

    ``backend`` is None when none serves: with a forced backend that cannot, the reason is the forced one's.
    """
    from .. import backends, ops  # noqa: F401 - ops registers the operations
    from ..ops import registry

    found = []
    for operation in registry.OPERATIONS:
        for device in backends.PREFERENCE:
            for dtype in registry.DTYPES[operation]:
                with warnings.catch_warnings():  # that kernels are missing is about to be reported
                    warnings.simplefilter("ignore")
                    backend, passed_over = _choice(operation, device, dtype)
                found.append(
                    {
                        "operation": operation,
                        "device": device,
                        "dtype": str(dtype).removeprefix("torch."),
                        "backend": backend,
                        "passed_over": passed_over,
                    }
                )
    return found


def _choice(operation: str, device: str, dtype: torch.dtype) -> tuple[str | None, dict[str, str]]:
    """The backend that serves, and those that would have come before it with the reason why they do not."""
    from .. import backends
    from ..ops import registry

    forced = backends.forced()
    if forced:
        try:
            registry.choose(operation, device, dtype, forced)
        except RuntimeError as error:
            return None, {forced: str(error)}
        return forced, {}
    passed_over: dict[str, str] = {}
    for name, reason in registry.explain(registry.OPERATIONS[operation], device, dtype):
        if reason is None:
            return name, passed_over
        passed_over[name] = reason
    return None, passed_over


def as_text(document: dict[str, Any]) -> str:
    """The report for people."""
    machine, threads = document["machine"], document["threads"]
    versions, commit, cuda = document["versions"], document["commit"], machine["cuda"]
    lines = ["Versions"]
    for name, version in versions.items():
        checkout = ""
        if name == "fastssl" and commit is not None:
            checkout = f" ({commit['commit'][:10]}{', changed' if commit['dirty'] else ''})"
        lines.append(f"  {name:24} {version or 'not installed'}{checkout}")
    lines += [
        "",
        "Machine",
        f"  {'platform':24} {machine['platform']}",
        f"  {'CPU':24} {machine['cpu']}, {machine['cores_usable']} of {machine['cores']} cores",
        f"  {'instructions':24} {' '.join(machine['cpu_instructions']) or 'unknown'}",
        f"  {'threads':24} {threads['torch']}"
        + "".join(f", {name}={value}" for name, value in threads["environment"].items()),
        f"  {'OpenMP':24} {_openmp(threads['openmp'])}",
        f"  {'CUDA':24} "
        + (
            "no device"
            if cuda is None
            else f"{cuda['name']}, compute capability {cuda['capability']}, {cuda['memory_bytes'] / 1e9:.0f} GB, "
            f"runtime {cuda['runtime']}"
        ),
        "",
        "C++ kernels",
        *_extension_lines(document["extension"]),
        "",
        "CUDA kernels",
        *_extension_lines(document["cuda_extension"]),
    ]
    lines += ["", "Backends" + (f" (forced: {document['forced_backend']})" if document["forced_backend"] else "")]
    return "\n".join(lines + _operation_lines(document["operations"]))


def _extension_lines(extension: dict[str, Any]) -> list[str]:
    lines = [] if extension["available"] else [f"  missing: {extension['reason']}"]
    for name, value in extension.items():
        if name not in ("available", "reason") and value not in (None, []):
            lines.append(f"  {name:24} {' '.join(value) if isinstance(value, list) else value}")
    return lines


def _openmp(runtimes: list[str] | None) -> str:
    if not runtimes:
        return "unknown" if runtimes is None else "none loaded"
    warning = "" if len(runtimes) == 1 else "  (more than one: they compete for the cores)"
    return ", ".join(runtimes) + warning


class _Story(NamedTuple):
    """One device and dtype: the backend that serves there, and why others do not."""

    device: str
    dtype: str
    backend: str | None
    passed_over: dict[str, str]


def _operation_lines(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Operations of which the same is true share a paragraph, and so do dtypes of a device."""
    by_operation: dict[str, list[_Story]] = {}
    for entry in entries:
        story = _Story(entry["device"], entry["dtype"], entry["backend"], entry["passed_over"])
        by_operation.setdefault(entry["operation"], []).append(story)
    paragraphs: list[tuple[list[str], list[_Story]]] = []
    for name, stories in by_operation.items():
        for names, known in paragraphs:
            if known == stories:
                names.append(name)
                break
        else:
            paragraphs.append(([name], stories))
    lines = []
    for names, stories in paragraphs:
        lines.append("  " + ", ".join(names))
        for _, group in itertools.groupby(stories, lambda story: (story.device, story.backend, story.passed_over)):
            same = list(group)
            dtypes = ", ".join(story.dtype for story in same)
            lines.append(f"    {same[0].device:5} {same[0].backend or 'NONE':10} {dtypes}")
            lines += [f"          not {name}: {reason}" for name, reason in same[0].passed_over.items()]
    return lines
