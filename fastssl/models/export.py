"""Trained backbones as files that other tools load: safetensors and state dicts for timm, and ONNX.

Only the backbone is written. The projection head belongs to its method, is thrown away after training, and stays in the
checkpoint.
"""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fastssl._version import __version__
from fastssl.models.backbones import create_backbone
from fastssl.models.encoder import Architecture, Encoder

FORMAT = 1  # of the description; a reader refuses what is newer than itself
ONNX_MODULES = ("onnx", "onnxscript", "onnxruntime")
_ONNX_LARGEST = 2**31 - 2**20  # bytes of weights in one file: protobuf ends at 2 GB
_ONNX_TOLERANCE = 1e-4  # largest error, as a share of the largest feature: float32 in another order of summation
_WORDS = ("architecture", "stem", "method", "fastssl_version")  # of the description; the rest is written as JSON


def describe(encoder: Encoder) -> dict[str, Any]:
    """What a reader needs besides the weights.

    Returns:
        architecture and kwargs (of ``timm.create_model(architecture, num_classes=0, **kwargs)``), stem ("timm", or
        "small": see :func:`fastssl.models.create_backbone`), size (side of the images in pixels), mean and std (per
        channel, for values in [0, 1]), num_features, method (name of the class that trained it, empty for a model of
        timm), fastssl_format, fastssl_version.

    Raises:
        ValueError: if an argument of timm cannot be written as JSON.
    """
    name, stem, kwargs = encoder.architecture
    mean, std = encoder.statistics
    description = {
        "architecture": name,
        "kwargs": dict(kwargs),
        "stem": stem,
        "size": encoder.size,
        "mean": list(mean),
        "std": list(std),
        "num_features": encoder.num_features,
        "method": encoder.method,
        "fastssl_format": FORMAT,
        "fastssl_version": __version__,
    }
    try:
        json.dumps(description)
    except TypeError as error:
        raise ValueError(f"backbone_args must be numbers, words, lists and dicts to be exported: {error}") from None
    return description


def write_safetensors(encoder: Encoder, path: str | Path) -> None:
    """Write the backbone's weights to a .safetensors file, its description into the file's metadata.

    Args:
        encoder: whose backbone it is.
        path: of the file, which appears when it is complete, and replaces one that was there.

    Raises:
        ValueError: if the description cannot be written as JSON.
        OSError: if the file cannot be written.
    """
    from safetensors.torch import save

    # "format" is what Hugging Face's tools ask for. Of metadata all values are strings.
    metadata = {"format": "pt"} | _as_words(describe(encoder))
    _write(Path(path), save(_weights(encoder.backbone), metadata))


def write_state_dict(encoder: Encoder, path: str | Path) -> None:
    """Write the backbone's state dict as torch.save does it, and its description beside it, in a file ending in .json.

    Args:
        encoder: whose backbone it is.
        path: of the state dict. Both files appear when they are complete, and replace those that were there.

    Raises:
        ValueError: if the description cannot be written as JSON.
        OSError: if a file cannot be written.
    """
    path = Path(path)
    content = io.BytesIO()  # PyTorch's own writer hides why a file cannot be written
    torch.save(_weights(encoder.backbone), content)
    _write(path.with_suffix(".json"), (json.dumps(describe(encoder), indent=2) + "\n").encode())
    _write(path, content.getbuffer())


def write_onnx(encoder: Encoder, path: str | Path) -> float:
    """Write the backbone as an ONNX graph, by torch.export and without TorchScript, and compare it with PyTorch.

    Input "image", float32 [batch, 3, size, size], normalised; output "h", float32 [batch, num_features]; any batch.
    The description is in the model's metadata_props. Weights of more than 2 GB, which one file cannot hold, go into a
    second one, ``path`` with ".data" behind it.

    Args:
        encoder: whose backbone it is; images have its size.
        path: of the file, which appears when onnxruntime has run it and it is right, and replaces one that was there.

    Returns:
        The largest absolute difference between features of onnxruntime and of PyTorch, on random images.

    Raises:
        ModuleNotFoundError: naming the extra, where it is missing.
        ValueError: if the backbone cannot be exported, or the graph computes something else.
        OSError: if a file cannot be written.
    """
    missing = [module for module in ONNX_MODULES if find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(
            f'ONNX needs an extra: pip install "fastssl[onnx]" (missing: {", ".join(missing)})', name=missing[0]
        )
    path, name, size = Path(path), encoder.architecture.name, encoder.size
    backbone = copy.deepcopy(encoder.backbone).requires_grad_(False).float().cpu().eval()
    backbone = backbone.to(memory_format=torch.contiguous_format)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, size, size, generator=generator)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PyTorch 2.11 warns of its own parts
            program: Any = torch.onnx.export(
                backbone,
                (images[:2],),
                dynamo=True,
                input_names=["image"],
                output_names=["h"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ValueError(f"{name} cannot be exported to ONNX: {str(error).strip().splitlines()[0]}") from error
    program.model.metadata_props.update(_as_words(describe(encoder)))
    large = sum(value.numel() * value.element_size() for value in backbone.state_dict().values()) > _ONNX_LARGEST
    path.parent.mkdir(parents=True, exist_ok=True)
    # The graph names the file of its weights, so that both are written under their names, into a folder beside.
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        program.save(folder / path.name, external_data=large)
        worst = max(_onnx_error(folder / path.name, backbone, images[:batch]) for batch in (1, 3))
        for file in sorted(folder.iterdir(), reverse=True):  # the weights before the graph that names them
            _replace(file, path.parent / file.name)
    finally:
        shutil.rmtree(folder)
    return worst


def _onnx_error(path: Path, backbone: nn.Module, images: Tensor) -> float:
    """Largest absolute error of the graph's features.

    Raises:
        ValueError: if it is more than rounding.
    """
    import onnxruntime

    with torch.no_grad():
        expected = backbone(images)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(["h"], {"image": images.numpy()})[0])
    error = float((found - expected).abs().max()) if found.shape == expected.shape else float("nan")
    largest = float(expected.abs().max())
    if not error <= _ONNX_TOLERANCE * largest:
        raise ValueError(
            f"the ONNX graph differs from PyTorch on {len(images)} images: by {error:.2g}, of up to {largest:.2g}"
        )
    return error


def read_export(path: str | Path) -> Encoder:
    """The encoder in a file of :func:`write_safetensors` or :func:`write_state_dict`, on the CPU, in evaluation mode.

    Args:
        path: ending in .safetensors, or else of a state dict with its description beside it, ending in .json.

    Raises:
        ValueError: on one line, if there is no such file, or it is damaged or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is no export: there is no such file")
    description, weights = (_read_safetensors if path.suffix == ".safetensors" else _read_state_dict)(path)
    lacking = [key for key in ("architecture", "kwargs", "stem", "size", "mean", "std") if key not in description]
    if lacking:
        _refuse(path, f"is no export of fastssl: its description lacks {', '.join(lacking)}")
    number = description.get("fastssl_format", 1)
    if not isinstance(number, int) or number > FORMAT:
        version = description.get("fastssl_version", "a newer version")
        _refuse(path, f"was written by fastssl {version} in the format {number}; this is fastssl {__version__}")
    try:
        architecture = Architecture(description["architecture"], description["stem"], dict(description["kwargs"]))
        backbone = create_backbone(*architecture).to(memory_format=torch.channels_last)  # as it was trained
        backbone.load_state_dict(weights)
        method = str(description.get("method", ""))
        label = f"{method} {architecture.name}".strip()
        statistics = tuple(map(float, description["mean"])), tuple(map(float, description["std"]))
        return Encoder(backbone, architecture, int(description["size"]), None, label, method, statistics).eval()
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        _refuse(path, f"does not fit what its description says: {' '.join(str(error).split())[:200]}")


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            words = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
    except (OSError, SafetensorError) as error:
        _refuse(path, f"is no safetensors file that can be read ({error}); it may be cut off")
    try:
        # What other programs put into the metadata is theirs.
        keys = ("architecture", "kwargs", "stem", "size", "mean", "std", "method", "fastssl_format", "fastssl_version")
        return {key: words[key] if key in _WORDS else json.loads(words[key]) for key in keys if key in words}, weights
    except json.JSONDecodeError as error:
        _refuse(path, f"is no export of fastssl: its metadata cannot be read ({error})")


def _read_state_dict(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    beside = path.with_suffix(".json")
    try:
        description = json.loads(beside.read_text())
    except FileNotFoundError:
        _refuse(path, f"needs its description beside it, and there is no file {str(beside)!r}")
    except (OSError, ValueError) as error:
        _refuse(beside, f"cannot be read: {error}")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, depending on where the file is broken
        _refuse(path, f"is no state dict that PyTorch can read ({type(error).__name__}); it may be cut off")
    if not isinstance(description, dict) or not isinstance(weights, dict):
        _refuse(path, "is no export of fastssl: it must be a state dict, and the file beside it a description")
    return description, weights


def _refuse(path: Path, reason: str) -> NoReturn:
    raise ValueError(f"{str(path)!r} {reason}") from None


def _weights(backbone: nn.Module) -> dict[str, Tensor]:
    """The state dict on the CPU, each tensor in memory of its own and in row-major order, as files want it."""
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in backbone.state_dict().items()
    }


def _as_words(description: dict[str, Any]) -> dict[str, str]:
    return {key: value if key in _WORDS else json.dumps(value) for key, value in description.items()}


def _write(path: Path, content: bytes | memoryview) -> None:
    """Write a file that appears when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        _replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _replace(partial: Path, path: Path) -> None:
    with partial.open("rb") as file:
        os.fsync(file.fileno())  # or the name may be on the disk before the content is
    os.replace(partial, path)
