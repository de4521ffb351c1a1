"""The command line: `fastssl <command> ...`. Each command is a module with ``main(argv) -> int``, loaded on demand."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from fastssl._version import __version__

# Nothing here may import torch: `fastssl --help` answers at once, also where an extra is missing.
COMMANDS = {
    "fit": "train a method and evaluate the result",
    "test": "evaluate a checkpoint as during training",
    "eval": "measure any encoder: k-NN, linear, clusters, fine-tuning, few labels",
    "export": "write a trained backbone for timm, safetensors, ONNX",
    "bench": "time a kernel against reference PyTorch and other libraries",
    "visualize": "draw random views, attention, and features of patches as colours",
    "info": "show versions, the machine, and which backend each operation takes",
}


class UsageError(Exception):
    """Arguments that make no sense; the message is all that the user is shown."""


def missing_extra(command: str, modules: Sequence[str]) -> str | None:
    """The line that says what to install for a command that needs the training extra; None where nothing is missing."""
    if lacking := [module for module in modules if find_spec(module) is None]:
        return (
            f'fastssl {command} needs the training extra: pip install "fastssl[train]" (missing: {", ".join(lacking)})'
        )
    return None


def _usage() -> str:
    commands = "\n".join(f"  {name:<9} {line}" for name, line in COMMANDS.items())
    return (
        "usage: fastssl <command> [options]\n\n"
        "Fused kernels, losses and methods for self-supervised learning of images.\n\n"
        f"commands:\n{commands}\n\n"
        "options:\n"
        "  -h, --help     show this and exit; after a command, the help of that command\n"
        "  --version      show the version and exit\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        Exit status: 0, or 2 for arguments that make no sense.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(), end="")
        return 0
    command, *rest = arguments
    if command == "--version":
        print(f"fastssl {__version__}")
        return 0
    if command not in COMMANDS:
        from fastssl.configs import nearest

        kind, known = ("option", ["--help", "--version"]) if command.startswith("-") else ("command", list(COMMANDS))
        print(f"fastssl: no {kind} {command!r}; {nearest(command, known)}", file=sys.stderr)
        return 2
    try:
        status = importlib.import_module(f"fastssl.cli.{command}").main(rest)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `| head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit would complain
        return 0
    return status
