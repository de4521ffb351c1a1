"""Fine-tuning: the whole encoder and a linear classifier trained on labels, from all of them or from a few.

The recipe for all labels is that of BEiT (Bao et al. 2021, arXiv 2106.08254) and MAE (He et al. 2021, arXiv 2111.06377,
table 9): AdamW, a learning rate that decays from layer to layer towards the input, label smoothing, stochastic depth.
That for few labels is SimCLR's (Chen et al. 2020, appendix B.5): SGD with Nesterov's momentum at one rate, crops and
flips, no regularisation. Both can start from inside the projection head, as SimCLR v2 does (Chen et al. 2020b,
section 3).
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import timm.optim
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from fastssl.augment import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop
from fastssl.data.images import Batch
from fastssl.data.loader import ViewLoader
from fastssl.evaluate.features import extract
from fastssl.methods.optim import create_optimizer, warmup_cosine
from fastssl.models.backbones import create_backbone
from fastssl.models.encoder import Encoder, represent
from fastssl.models.heads import ProjectionHead

# Two images are the least from which BatchNorm learns something.
_LEAST = {"lr": 0, "weight_decay": 0, "epochs": 1, "min_steps": 0, "batch_size": 2, "head_layers": 0}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to fine-tune.

    Args:
        optimizer: "adamw", or "sgd" with momentum 0.9 and Nesterov's step.
        lr: highest learning rate of the classifier, per 256 images of a batch.
        layer_decay: a layer's rate is that of the layer above it times this.
        weight_decay: of all parameters but norms, biases, and what timm excludes, such as positions.
        epochs: passes over the labelled images.
        min_steps: at least so many steps, in further epochs, where there are few images.
        warmup: share of the steps in which the rate rises; along a cosine it falls to zero in the rest.
        batch_size: images per step; all of them where there are fewer.
        label_smoothing: share of each target that is spread over all classes.
        drop_path: stochastic depth, where timm's model has it.
        min_scale: smallest area of a crop as a share of the image.
        head_layers: hidden layers of the projection head that stay below the classifier, 1 in SimCLR v2; 0: none. An
            encoder without a projection is fine-tuned from h.

    Raises:
        ValueError: if an argument is out of range.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    epochs: int = 50
    min_steps: int = 0
    warmup: float = 0.1
    batch_size: int = 128
    label_smoothing: float = 0.1
    drop_path: float = 0.1
    min_scale: float = 0.08
    head_layers: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f'optimizer must be "adamw" or "sgd", got {self.optimizer!r}')
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("layer_decay", "min_scale"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        for name in ("warmup", "label_smoothing", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class FewLabels(Recipe):
    """How to fine-tune on a share of the labels.

    Args:
        optimizer: "adamw", or "sgd" with momentum 0.9 and Nesterov's step.
        lr: highest learning rate of the classifier, per 256 images of a batch.
        layer_decay: a layer's rate is that of the layer above it times this.
        weight_decay: of all parameters but norms, biases, and what timm excludes, such as positions.
        epochs: passes over the labelled images; half as many from a share of 5 % on.
        min_steps: at least so many steps, in further epochs, where there are few images.
        warmup: share of the steps in which the rate rises; along a cosine it falls to zero in the rest.
        batch_size: images per step; all of them where there are fewer.
        label_smoothing: share of each target that is spread over all classes.
        drop_path: stochastic depth, where timm's model has it.
        min_scale: smallest area of a crop as a share of the image.
        head_layers: hidden layers of the projection head that stay below the classifier, 1 in SimCLR v2; 0: none. An
            encoder without a projection is fine-tuned from h.
        fractions: shares of the labels, each above 0 and at most 1.

    Raises:
        ValueError: if an argument is out of range.
    """

    optimizer: Literal["adamw", "sgd"] = "sgd"
    lr: float = 0.05
    layer_decay: float = 1.0
    weight_decay: float = 0.0
    epochs: int = 60
    min_steps: int = 200
    warmup: float = 0.0
    label_smoothing: float = 0.0
    drop_path: float = 0.0
    fractions: Sequence[float] = (0.01, 0.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fractions or not all(0 < fraction <= 1 for fraction in self.fractions):
            raise ValueError(f"fractions must be above 0 and at most 1, got {list(self.fractions)}")

    def recipe(self, fraction: float) -> Recipe:
        """For one share of the labels."""
        epochs = self.epochs if fraction < 0.05 else max(1, self.epochs // 2)
        return dataclasses.replace(self, epochs=epochs)


def layer_groups(model: nn.Module, layer_decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups with "lr_scale", the share of the rate that a layer gets, from timm's account of layers.

    Args:
        model: of timm, with its classifier: the last layer, whose share is 1.
        layer_decay: share of each layer in the rate of the next.
        weight_decay: of matrices; vectors get none.
    """
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    return timm.optim.param_groups_layer_decay(
        model, weight_decay=weight_decay, no_weight_decay_list=exempt, layer_decay=layer_decay
    )


class _Labelled(Dataset[Batch]):
    """Some of the images of a data set; the key of a view stays the place among all of them."""

    def __init__(self, images: Any, places: Tensor) -> None:
        self.images, self.places = images, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitems__(self, indices: list[int]) -> Batch:
        return self.images.__getitems__(self.places[indices].tolist())


def fine_tune(
    encoder: Encoder,
    images: Dataset[Batch],
    places: Tensor,
    num_classes: int,
    recipe: Recipe,
    *,
    seed: int = 0,
    num_workers: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> Encoder:
    """Train a copy of an encoder with a linear classifier on it.

    The order of the images and their views, a random crop and a flip, are functions of (seed, epoch, index); dropout
    and stochastic depth draw from PyTorch's global generator, which is put back afterwards. On a CUDA device with
    bfloat16 arithmetic, autocast is on.

    Args:
        encoder: where it starts; it is not changed.
        images: labelled images.
        places: int64, which of them to train on: those whose label is known.
        num_classes: labels are 0 to num_classes - 1.
        recipe: see :class:`Recipe`.
        seed: of order, views and classifier.
        num_workers: processes that decode.
        progress: called after each epoch with its number from 1 on, how many there are, and its mean loss.

    Returns:
        An encoder that gives logits [B, num_classes] in the place of h.

    Raises:
        ValueError: if `places` is empty, or the projection head has not as many hidden layers as the recipe keeps.
    """
    if not len(places):
        raise ValueError("fine_tune: places must hold at least one image, got none")
    device = next(encoder.parameters()).device
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        torch.manual_seed(seed)
        model = _with_classifier(encoder, num_classes, recipe).to(device).to(memory_format=torch.channels_last)
        view = Compose(
            [
                RandomResizedCrop(encoder.size, scale=(recipe.min_scale, 1.0), interpolation="bicubic"),
                RandomHorizontalFlip(),
                Normalize(*encoder.statistics),
            ]
        )
        batch_size = min(recipe.batch_size, len(places))
        loader = ViewLoader(
            _Labelled(images, places), view, batch_size, num_workers=num_workers, seed=seed, device=device
        )
        epochs = max(recipe.epochs, math.ceil(recipe.min_steps / len(loader)))
        total = epochs * len(loader)
        groups = layer_groups(model, recipe.layer_decay, recipe.weight_decay)
        lr = recipe.lr * batch_size / 256
        for group in groups:
            group["lr"] = lr * group["lr_scale"]
        optimizer = create_optimizer(recipe.optimizer, groups, lr, momentum=0.9)
        warmup = round(recipe.warmup * total)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, total))
        autocast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        for epoch in range(epochs):
            summed = torch.zeros((), device=device)
            for x, label, _ in loader:
                model.train()
                with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                    logits = represent(model, x)
                # -1: what a reader puts in the place of an image that it cannot read may have no label.
                loss = F.cross_entropy(logits.float(), label, ignore_index=-1, label_smoothing=recipe.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                summed += loss.detach()
            if progress is not None:
                progress(epoch + 1, epochs, summed.item() / len(loader))
    return Encoder(model, encoder.architecture, encoder.size, label="fine-tuned", statistics=encoder.statistics)


def classifier_accuracy(classifier: Encoder, batches: Iterable[Batch]) -> float:
    """Share of the images of known label, in [0, 1], whose largest logit is that of their class."""
    logits, label = extract(classifier, classifier.transform, batches).known()
    return (logits.argmax(1) == label).float().mean().item()


def first_layers(encoder: Encoder, count: int) -> nn.Sequential | None:
    """The hidden layers of the projection head that stay below a classifier, copied; None: there are none to stay.

    Raises:
        ValueError: if the head has not so many.
    """
    if not count or not encoder.has_projection:
        return None
    if not isinstance(encoder.projection, ProjectionHead):
        head = type(encoder.projection).__name__
        raise ValueError(f"head_layers must be 0, the projection of {encoder.label} is a {head}; got {count}")
    return copy.deepcopy(encoder.projection.first(count))


def _with_classifier(encoder: Encoder, num_classes: int, recipe: Recipe) -> nn.Module:
    """A copy of the backbone with a new classifier as its last layer, and stochastic depth where it has that."""
    name, stem, kwargs = encoder.architecture
    own = dict(kwargs)
    if recipe.drop_path:
        own["drop_path_rate"] = recipe.drop_path
    try:
        model: Any = create_backbone(name, stem, own)
    except ValueError:  # timm's model knows no stochastic depth
        model = create_backbone(name, stem, kwargs)
    model.load_state_dict(encoder.backbone.state_dict())
    model.reset_classifier(num_classes)
    kept = first_layers(encoder, recipe.head_layers)
    if kept is not None:  # part of the last layer: it has the classifier's rate
        classifier = model.get_classifier()
        place = next(path for path, module in model.named_modules() if module is classifier)
        width = next(module.out_features for module in reversed(kept) if isinstance(module, nn.Linear))
        parent, _, attribute = place.rpartition(".")
        setattr(model.get_submodule(parent), attribute, nn.Sequential(kept, nn.Linear(width, num_classes)))
    return model
