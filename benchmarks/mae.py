"""Whole training steps of MAE: the same encoder, decoder and optimizer, with what others put between their blocks.

A step takes normalised images [B, 3, H, H], draws masks, embeds patches, makes the encoder's and the decoder's input,
compares predicted patches, computes all gradients and updates the weights. Patch embedding, blocks, norms and the last
layer of every provider are those of one :class:`fastssl.methods.mae.MAE`; the noise that decides about the masks is
given, so that everyone draws the same. Views and Lightning's loop are left out.

Before anything is timed, every provider's loss and gradients, from the same weights, are compared with float64, in
which the published form is computed.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl import functional

from . import training
from .cases import Case, Expected, Family, Function, Provider, Rate, Unavailable, Work
from .patch_loss import patchified
from .providers import check_above_zero

if TYPE_CHECKING:
    from fastssl.methods.mae import MAE

MASK_RATIO = 0.75
EPS = 1e-6  # beside the variance of a patch
ORDER = ("B", "H", "patch", "depth", "dim", "decoder_depth", "decoder_dim", "decoder_heads")
# The first is what `fastssl fit mae` trains; the last is the paper's smallest.
CASES: dict[str, tuple[float, ...]] = {
    "mae": (32, 64, 8, 4, 128, 2, 64, 4),
    "mae-vit-small": (8, 224, 16, 12, 384, 8, 512, 16),
    "mae-vit-base": (256, 224, 16, 12, 768, 8, 512, 16),
}
DEFAULT = ("mae",)  # the others take patience, or a GPU

# A model, images and noise -> the loss.
Form = Callable[["MAE", Tensor, Tensor], Tensor]


def sizes(name: str, batch: int | None = None) -> dict[str, float]:
    """The sizes of a case in ``CASES``."""
    return dict(zip(ORDER, CASES[name], strict=True)) | ({} if batch is None else {"B": batch})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--case", nargs="+", choices=list(CASES), default=list(DEFAULT),
        help="mae: what `fastssl fit mae` trains; mae-vit-small: views of 224 and the paper's decoder; mae-vit-base: "
        "the paper's, for a GPU. Default: mae",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, nargs="+", metavar="B", help="images; default: each case's own")


def cases(arguments: argparse.Namespace, device: str) -> list[Case]:
    if arguments.batch is not None:
        check_above_zero({"--batch": arguments.batch})
    for package in ("lightning", "timm"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f'{package} is needed and not installed: pip install "fastssl[train]"')
    return [
        Case.named(sizes(name, batch), dtype, device)
        for name in arguments.case
        for batch in arguments.batch or [None]
        for dtype in arguments.dtype
    ]


def tiny_sizes(sizes: Mapping[str, float]) -> dict[str, float]:
    return {**sizes, "B": min(sizes["B"], 2), "H": 3 * sizes["patch"], "depth": 1, "decoder_depth": 1}


def inputs(case: Case, seed: int) -> tuple[Tensor, Tensor]:
    """Images float32 [B, 3, H, H] and noise [B, L]."""
    batch, side, patch = (int(case.sizes[name]) for name in ("B", "H", "patch"))
    generator = torch.Generator(case.device).manual_seed(seed)
    images = torch.randn(batch, 3, side, side, generator=generator, device=case.device)
    return images, torch.rand(batch, (side // patch) ** 2, generator=generator, device=case.device)


def create(sizes: Mapping[str, float], form: Form | None = None) -> MAE:
    """The model of a case, always with the same weights; it takes noise in the place of positions in a data set.

    Args:
        sizes: of the case.
        form: how it computes its loss; None: as the method does.
    """
    from fastssl.methods.base import Step
    from fastssl.methods.mae import MAE

    def new() -> MAE:
        return MAE(
            MASK_RATIO, size=int(sizes["H"]), decoder_dim=int(sizes["decoder_dim"]),
            decoder_depth=int(sizes["decoder_depth"]), decoder_heads=int(sizes["decoder_heads"]),
            optimizer="adamw", lr=1e-3, lr_batch_size=0, warmup_epochs=1,
            **training.backbone(sizes),
        )  # fmt: skip

    model: Any = training.without_trainer(new)
    model.masks = lambda noise: functional.masks_from_noise(noise, mask_ratio=MASK_RATIO)
    if form is not None:

        def step(x: Tensor, noise: Tensor) -> Step:
            loss = form(model, x, noise)
            return Step(loss, loss, loss)

        model.step = step
    return model


def truth(case: Case, inputs: tuple[Tensor, ...], seed: int) -> list[Expected]:
    """Loss and gradients of the published form in float64."""
    model = create(case.sizes, published).double().to(case.device)
    images, noise = inputs
    loss = model.step(images.double(), noise).loss
    loss.backward()
    return training.expected_of(model, loss)


def compared(case: Case, inputs: Sequence[Tensor], result: tuple[Tensor, training.Training]) -> tuple[Tensor, ...]:
    """What stands beside ``truth``."""
    return result[1].compared(inputs)


def work(case: Case, which: str) -> Work:
    return Work(case.sizes["B"] * _flops_of_an_image(tuple(case.sizes.items())), 0)


@lru_cache
def _flops_of_an_image(sizes: tuple[tuple[str, float], ...]) -> float:
    """Of the network's forward and backward pass, as PyTorch counts products."""
    from torch.utils.flop_counter import FlopCounterMode

    images, noise = inputs(Case({**dict(sizes), "B": 2}, torch.float32, "cpu"), 0)
    model = create(dict(sizes))
    with FlopCounterMode(display=False) as counter:
        model.step(images, noise).loss.backward()
    return counter.get_total_flops() / len(images)


# --- Providers ------------------------------------------------------------------------------------------------------


def _through(blocks: Any, norm: Any, x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return norm(x)


def published(model: MAE, x: Tensor, noise: Tensor) -> Tensor:
    """As the paper's code writes it (models_mae.py of facebookresearch/mae), around the same blocks."""
    encoder: Any = model.backbone
    decoder, patch = model.decoder, model.patch_size
    tokens = encoder.patch_embed(x).flatten(1, -2) + encoder.pos_embed[:, 1:]
    batch, length, dim = tokens.shape
    keep = int(length * (1 - MASK_RATIO))
    order = noise.argsort(dim=1)
    restore = order.argsort(dim=1)
    tokens = tokens.gather(1, order[:, :keep, None].repeat(1, 1, dim))
    mask = torch.ones(batch, length, device=x.device)
    mask[:, :keep] = 0
    mask = mask.gather(1, restore)
    first = encoder.cls_token + encoder.pos_embed[:, :1]
    tokens = torch.cat([first.expand(batch, -1, -1), tokens], 1)
    tokens = decoder.embed(_through(encoder.blocks, encoder.norm, tokens))

    missing = decoder.mask_token.repeat(batch, length - keep, 1)
    whole = torch.cat([tokens[:, 1:], missing.to(tokens.dtype)], 1)
    whole = whole.gather(1, restore[..., None].repeat(1, 1, tokens.shape[2]))
    whole = torch.cat([tokens[:, :1], whole], 1) + decoder.pos_embed
    predicted = decoder.pred(_through(decoder.blocks, decoder.norm, whole))[:, 1:]

    target = patchified(x, patch)
    mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
    target = (target - mean) / (variance + EPS) ** 0.5
    return (((predicted - target) ** 2).mean(-1) * mask).sum() / mask.sum()


def with_lightlys_utilities(model: MAE, x: Tensor, noise: Tensor) -> Tensor:
    """As in lightly's example: the decoder's last layer and the loss see masked patches alone."""
    from lightly.models import utils

    encoder: Any = model.backbone
    decoder, patch = model.decoder, model.patch_size
    keep = int(noise.shape[1] * (1 - MASK_RATIO))
    order = noise.argsort(dim=1) + 1  # behind the class token
    stay, masked = torch.cat([torch.zeros_like(order[:, :1]), order[:, :keep]], 1), order[:, keep:]
    tokens = utils.prepend_class_token(encoder.patch_embed(x).flatten(1, -2), encoder.cls_token) + encoder.pos_embed
    tokens = decoder.embed(_through(encoder.blocks, encoder.norm, utils.get_at_index(tokens, stay)))

    whole = utils.repeat_token(decoder.mask_token, (len(x), noise.shape[1] + 1)).to(tokens.dtype)
    whole = utils.set_at_index(whole, stay, tokens) + decoder.pos_embed
    for block in decoder.blocks:
        whole = block(whole)
    predicted = decoder.pred(decoder.norm(utils.get_at_index(whole, masked)))
    target = utils.normalize_mean_var(utils.get_at_index(utils.patchify(x, patch), masked - 1), dim=-1)
    return F.mse_loss(predicted.float(), target)


def _own(model: MAE, x: Tensor, noise: Tensor) -> Tensor:
    return type(model).step(model, x, noise).loss


def _step(form: Form | None, case: Case, *, compiles: bool = False, backend: str | None = None) -> Function:
    training.check_backend(case, backend, "visible_patches", "unshuffle_tokens", "patch_loss")
    if compiles:
        form = torch.compile(form or _own, dynamic=False)
    if form is with_lightlys_utilities and importlib.util.find_spec("lightly") is None:
        raise Unavailable("lightly is not installed")

    def source(_: Any) -> Callable[..., Iterator[Sequence[Tensor]]]:
        return lambda *tensors: iter([tensors])

    return training.Training(case, lambda: create(case.sizes, form).to(case.device), source, backend)


def _provider(form: Form | None, note: str, **options: Any) -> Provider:
    compiles = options.get("compiles", False)
    return Provider(partial(_step, form, **options), note=lambda case: note, finish=compared, compiles=compiles)


PROVIDERS = {
    "fastssl": _provider(None, "the method as it comes"),
    "fastssl-compiled": _provider(None, "the method's whole step under torch.compile", compiles=True),
    "fastssl-chunked": _provider(None, "backend chunked", backend="chunked"),
    "fastssl-triton": _provider(None, "backend triton", backend="triton"),
    "eager": _provider(published, "facebookresearch/mae's forward"),
    "compiled": _provider(published, "facebookresearch/mae's forward, all of it under torch.compile", compiles=True),
    "lightly": _provider(with_lightlys_utilities, "lightly's example"),
}

FAMILY = Family(
    name="mae",
    module=__name__,
    subject="fastssl",
    baseline="eager",
    add_arguments=add_arguments,
    cases=cases,
    inputs=inputs,
    truth=truth,
    tiny_sizes=tiny_sizes,
    work=work,
    work_model="which is that of products: those of the network, forward and backward, at the rate of the best "
    "product; masks, loss and update are not counted",
    providers=PROVIDERS,
    optional=frozenset({"fastssl-chunked", "fastssl-triton"}),
    passes=("step",),
    rate=Rate("images/s", lambda case: case.sizes["B"]),
    parts=training.parts,
)
