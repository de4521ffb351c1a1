"""``fastssl export``: a trained backbone as files that other tools load."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fastssl.cli import UsageError
from fastssl.configs import nearest

if TYPE_CHECKING:  # nothing heavy is imported before the arguments are known to make sense
    from jsonargparse import ArgumentParser, Namespace

    from fastssl.models import Encoder

SUFFIXES = {"safetensors": ".safetensors", "pytorch": ".pth", "onnx": ".onnx"}
_EXTRA = ("jsonargparse", "lightning", "safetensors", "timm")


class Target(NamedTuple):
    """A file to write, in one of the formats of SUFFIXES."""

    format: str
    path: Path

    def files(self) -> list[Path]:
        """All that may be written: the file, and what lies beside it."""
        beside = {"pytorch": [self.path.with_suffix(".json")], "onnx": [Path(f"{self.path}.data")]}
        return [self.path, *beside.get(self.format, [])]


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: arguments after `fastssl export`.

    Returns:
        Exit status: 0, 1 where an extra is missing, the source cannot be read or a graph is wrong, 2 for arguments that
        make no sense.
    """
    arguments = list(argv)
    if not arguments:
        print(_usage(), end="")
        return 0
    missing = [module for module in _EXTRA if find_spec(module) is None]
    if missing:
        print(
            f'fastssl export needs the training extra: pip install "fastssl[train]" (missing: {", ".join(missing)})',
            file=sys.stderr,
        )
        return 1
    try:
        return _export(arguments)
    except UsageError as error:
        print(f"fastssl export: {error}", file=sys.stderr)
        return 2


def _usage() -> str:
    return (
        "usage: fastssl export SOURCE [--format safetensors|pytorch|onnx ...] [--out FILE|FOLDER] [options]\n\n"
        "Write the backbone of a run, a checkpoint or a timm model for timm, fastssl.load or onnxruntime to read.\n"
        "\n"
        "examples:\n"
        "  fastssl export runs/simclr_photos/1                              encoder.safetensors beside the checkpoint\n"
        "  fastssl export runs/simclr_photos/1/last.ckpt --out encoder.onnx\n"
        "  fastssl export runs/simclr_photos/1 --format safetensors pytorch onnx --out exported\n"
        "  fastssl export --help                                            all options\n"
    )


def _parser() -> ArgumentParser:
    from fastssl.cli.parsing import Parser

    parser = Parser(prog="fastssl export", description="Write a backbone to files that other tools load.")
    parser.add_argument(
        "source",
        nargs="?",
        help="folder of a run, checkpoint, exported .safetensors or .pth, or name of a timm model",
    )
    parser.add_argument(
        "--format",
        nargs="+",
        help="safetensors (read by timm, Hugging Face and fastssl.load), pytorch (a state dict .pth and a description "
        ".json), onnx; what --out ends in, or else safetensors, where it is not given",
    )
    parser.add_argument(
        "--out", type=str, help="a file, or a folder; where it is not given, the folder in which the source is"
    )
    parser.add_argument("--overwrite", action="store_true", help="write over files that are there")
    parser.add_argument(
        "--size", type=int, help="side in pixels of the images, if it should be another than in training"
    )
    parser.add_argument(
        "--pretrained",
        action="store_true",
        help="with the name of a timm model: its published weights, which timm downloads unless they are in its cache",
    )
    return parser


def _export(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    formats = options.format
    # `--format onnx SOURCE`: an option with several values takes all that follows.
    if options.source is None and formats and len(formats) > 1 and formats[-1] not in SUFFIXES:
        options.source = formats.pop()
    if options.source is None:
        raise UsageError("a source is needed: the folder of a run, a checkpoint, or the name of a timm model")
    if options.size is not None and options.size < 1:
        raise UsageError(f"--size must be at least 1, got {options.size}")
    targets = _targets(options)
    if not options.overwrite:
        for file in (file for target in targets for file in target.files()):
            if file.exists():
                raise UsageError(f"{str(file)!r} is there already; give another name by --out, or --overwrite")

    from fastssl.models import load_encoder
    from fastssl.models.export import ONNX_MODULES

    missing = [module for module in ONNX_MODULES if find_spec(module) is None]
    if missing and any(target.format == "onnx" for target in targets):
        print(
            f'fastssl export: ONNX needs an extra: pip install "fastssl[onnx]" (missing: {", ".join(missing)})',
            file=sys.stderr,
        )
        return 1
    try:
        encoder = load_encoder(options.source, pretrained=options.pretrained, size=options.size)
    except ValueError as error:
        print(f"fastssl export: {error}", file=sys.stderr)
        return 1 if Path(options.source).expanduser().exists() else 2
    number = sum(parameter.numel() for parameter in encoder.backbone.parameters())
    print(f"{encoder.label}: {number / 1e6:.1f} M parameters, {encoder.num_features} features, {encoder.size} pixels")
    for target in targets:
        try:
            print(_write(encoder, target), flush=True)
        except OSError as error:
            raise UsageError(f"cannot write {str(target.path)!r}: {error.strerror or error}") from None
        except ValueError as error:
            print(f"fastssl export: {target.path}: {error}", file=sys.stderr)
            return 1
    return 0


def _targets(options: Namespace) -> list[Target]:
    formats: list[str] = list(dict.fromkeys(options.format or []))
    for word in formats:
        if word not in SUFFIXES:
            raise UsageError(f"no format {word!r}; {nearest(word, list(SUFFIXES))}")
    source = Path(options.source).expanduser()
    if options.out is not None:
        out = Path(options.out).expanduser()
        file = next((folder for folder in out.parents if folder.is_file()), None)
        if file is not None:
            raise UsageError(f"--out: {str(file)!r} is a file and no folder, got {options.out!r}")
        of_suffix = next((word for word, suffix in SUFFIXES.items() if out.suffix.lower() == suffix), None)
        if of_suffix is not None and not out.is_dir():
            if formats not in ([], [of_suffix]):
                raise UsageError(f"--out must be a folder for --format {' '.join(formats)}, got {options.out!r}")
            return [Target(of_suffix, out)]
        if out.is_file() or (out.suffix and not out.is_dir() and not options.out.endswith("/")):
            endings = ", ".join(SUFFIXES.values())
            raise UsageError(f"--out must be a folder, or a file ending in {endings}, got {options.out!r}")
        folder = out
    else:
        folder = source if source.is_dir() else source.parent if source.exists() else Path()
    if not source.exists():
        stem = options.source.removeprefix("timm:")
    else:
        stem = source.stem if source.suffix in SUFFIXES.values() else "encoder"
    return [Target(word, folder / f"{stem}{SUFFIXES[word]}") for word in formats or ["safetensors"]]


def _write(encoder: Encoder, target: Target) -> str:
    """Write a file; what there is to say about it."""
    from fastssl.models import export

    path = target.path
    if target.format == "onnx":
        error = export.write_onnx(encoder, path)
        return (
            f"{path}: {_megabytes(path)}, any batch of {encoder.size} x {encoder.size} pixels; run by onnxruntime, the "
            f"largest error against PyTorch is {error:.1e}"
        )
    (export.write_safetensors if target.format == "safetensors" else export.write_state_dict)(encoder, path)
    calls = [f"fastssl.load({str(path)!r})"]
    name, stem, kwargs = encoder.architecture
    if stem == "timm":
        words = "".join(f", {key}={value!r}" for key, value in kwargs.items())
        calls.append(f"timm.create_model({name!r}, num_classes=0{words}, checkpoint_path={str(path)!r})")
    return "\n".join([f"{path}: {_megabytes(path)}", *(f"  {call}" for call in calls)])


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
