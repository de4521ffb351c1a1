"""An encoder as evaluations, exports and pictures take it, wherever it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from fastssl.augment import IMAGENET_MEAN, IMAGENET_STD, EvalTransform
from fastssl.configs import nearest
from fastssl.models.backbones import Stem, create_backbone, is_model, sized_args

Statistics = tuple[Sequence[float], Sequence[float]]


class Architecture(NamedTuple):
    """What rebuilds a backbone: ``create_backbone(name, stem, kwargs)``.

    Attributes:
        name: of the model in timm.
        stem: "timm" or "small".
        kwargs: of timm.create_model.
    """

    name: str
    stem: Stem = "timm"
    kwargs: Mapping[str, Any] = {}


class Encoder(nn.Module):
    """A backbone with what is needed to use it.

    Args:
        backbone: float [B, 3, H, W] -> h [B, num_features], with the attribute ``num_features``.
        architecture: what rebuilds it.
        size: side in pixels of the images that it sees.
        projection: h -> z [B, out_dim], or None.
        label: what tables call it.
        method: that trained it, the name of its class; empty for a model of timm.
        statistics: mean and standard deviation per channel with which its images are normalised, for values in [0, 1].

    Attributes:
        transform: :class:`fastssl.augment.EvalTransform`: uint8 images, a stack or a list, to what ``forward`` takes.
    """

    def __init__(
        self,
        backbone: nn.Module,
        architecture: Architecture,
        size: int,
        projection: nn.Module | None = None,
        label: str = "",
        method: str = "",
        statistics: Statistics = (IMAGENET_MEAN, IMAGENET_STD),
    ) -> None:
        super().__init__()
        self.backbone, self.projection = backbone, projection
        self.architecture, self.size, self.label = architecture, size, label or architecture.name
        self.method, self.statistics = method, statistics
        self.num_features: int = backbone.num_features  # type: ignore[assignment]  # timm's, not a tensor
        self.transform = EvalTransform(size, *statistics)

    def resize(self, size: int) -> None:
        """Take images of another size from now on; the positions of a transformer are interpolated.

        Args:
            size: side in pixels, at least 1.

        Raises:
            ValueError: if the backbone cannot: it is built for one size, or its patches do not divide this one.
        """
        kwargs = dict(self.architecture.kwargs)
        if "img_size" in kwargs or hasattr(self.backbone, "set_input_size"):
            try:
                self.backbone.set_input_size(img_size=(size, size))  # type: ignore[operator]  # timm's, not a tensor
            except (AssertionError, AttributeError, TypeError) as error:
                raise ValueError(f"size must be one that {self.label} can take, got {size}: {error}") from None
            self.architecture = self.architecture._replace(kwargs=kwargs | {"img_size": size})
        self.size, self.transform = size, EvalTransform(size, *self.statistics)

    @property
    def has_projection(self) -> bool:
        """Whether there is a z."""
        return self.projection is not None

    def forward(self, x: Tensor) -> Tensor:
        """Representation h [B, num_features] of normalised images [B, 3 or 1, H, W]."""
        return represent(self.backbone, x)

    def project(self, h: Tensor) -> Tensor:
        """Projection z [B, out_dim] of h [B, num_features].

        Raises:
            ValueError: where no projection came with the encoder.
        """
        if self.projection is None:
            raise ValueError(f"{self.label}: there is no projection, only the representation h")
        return self.projection(h)


def represent(backbone: nn.Module, x: Tensor) -> Tensor:
    """h of normalised images [B, 3 or 1, H, W]; grey ones get three equal channels."""
    if x.shape[1] == 1:
        x = x.expand(-1, 3, -1, -1)
    # The convolutions of a CPU and of tensor cores want channels last; a transformer does not mind.
    return backbone(x.contiguous(memory_format=torch.channels_last))


def load_encoder(source: str | Path, *, pretrained: bool = False, size: int | None = None) -> Encoder:
    """The encoder that a word on the command line means, in evaluation mode.

    Args:
        source: a checkpoint of ``fastssl fit``, the folder of a run (its last.ckpt is taken), an exported .safetensors
            or .pth, or the name of a model in timm, also written "timm:NAME".
        pretrained: of a timm model, whether to load its published weights, which timm downloads unless they are in its
            cache; else it is untrained.
        size: side in pixels of the images; None takes that of the training, or the model's own.

    Raises:
        ValueError: on one line, if the source is none of these, or is damaged.
    """
    word = str(source)
    path = Path(word).expanduser()
    if path.exists():
        if pretrained:
            raise ValueError(f"pretrained goes with the name of a timm model, got the file {word!r}")
        encoder = read_encoder(path)
    else:
        encoder = _create(word, pretrained, size)
    if size is not None and size != encoder.size:
        encoder.resize(size)
    return encoder.eval()


def read_encoder(path: str | Path) -> Encoder:
    """The encoder in a file or in the folder of a run, on the CPU, in evaluation mode.

    Args:
        path: what is a path among the sources of :func:`load_encoder`.

    Raises:
        ValueError: on one line, if there is no such file, or it is damaged or of another kind.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise ValueError(_no_such(path))
    if path.suffix in (".safetensors", ".pth"):
        from fastssl.models.export import read_export

        return read_export(path)
    from fastssl.methods.base import load  # a method brings its own parts; only here does this file look up to it

    return load(path).encoder().eval()


def _create(word: str, pretrained: bool, size: int | None) -> Encoder:
    name = word.removeprefix("timm:")
    if not is_model(name):
        if word == name and ("/" in word or Path(word).suffix in (".ckpt", ".safetensors", ".pth")):
            raise ValueError(_no_such(Path(word).expanduser()))
        raise ValueError(f"{word!r} is no file, no folder and no timm model; {nearest(name, timm.list_models())}")
    own = timm.get_pretrained_cfg(name)
    side = size or (own.input_size[-1] if own is not None else 224)
    kwargs = sized_args(name, side)
    backbone = create_backbone(name, "timm", kwargs, pretrained=pretrained)
    # An untrained network has seen no images; published weights want theirs normalised as they were in their training.
    statistics = (own.mean, own.std) if pretrained and own is not None else (IMAGENET_MEAN, IMAGENET_STD)
    return Encoder(backbone, Architecture(name, "timm", kwargs), side, label=name, statistics=statistics)


def _no_such(path: Path) -> str:
    """A message about a path that is not there."""
    message = f"there is no file or folder {str(path)!r}; "
    here = path
    while not here.exists() and here != here.parent:
        missing, here = here, here.parent
    names = sorted(entry.name for entry in here.iterdir() if not entry.name.startswith(".")) if here.is_dir() else []
    if not names:
        return message + (f"{str(here)!r} is empty" if here.is_dir() else f"{str(here)!r} is no folder")
    return message + f"in {str(here)!r}, " + nearest(missing.name, names)
