"""The patch loss on a GPU: what ``gpu.py`` verifies and times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastssl.ops import gradients, registry
from fastssl.ops.reconstruction import reference

from . import patch_loss
from .cases import DTYPES, Case
from .gpu_family import GpuFamily, Target, Verification


@dataclass
class Patches:
    """Predictions behind a class token and an image, each inside NaN, with some patches left out."""

    prediction: Tensor
    image: Tensor
    weight: Tensor
    d_loss: Tensor
    rules: Mapping[str, Any]
    backend: ModuleType

    def solve(self) -> Sequence[Tensor]:
        inputs = self.prediction, self.image, self.weight
        loss, gradient = self.backend.patch_loss_step(*inputs, **self.rules)
        losses = self.backend.patch_loss(*inputs, **self.rules)
        return loss, gradient, losses, self.backend.patch_loss_grad(*inputs, self.d_loss, **self.rules)

    def judge(self, results: Sequence[Tensor]) -> Mapping[str, float]:
        image = self.image if self.image.dtype == torch.uint8 else self.image.double()
        truth = self._all(self.prediction.double(), image, self.weight.double(), self.d_loss.double())
        eager = self._all(self.prediction, self.image, self.weight, self.d_loss)
        errors = {}
        for name, got, want, plain in zip(("sum", "gradient at once", "loss", "gradient"), results, truth, eager,
                                          strict=True):  # fmt: skip
            scale = want.abs().max()
            allowed = 2 * (plain - want).abs().max() + 16 * torch.finfo(torch.float32).eps * scale
            allowed = allowed + torch.finfo(got.dtype).eps * want.abs()
            errors[name] = float(((got - want).abs() / allowed).max())
        return errors

    def _all(self, prediction: Tensor, image: Tensor, weight: Tensor, d_loss: Tensor) -> tuple[Tensor, ...]:
        loss, gradient = reference.patch_loss_step(prediction, image, weight, **self.rules)
        losses = reference.patch_loss(prediction, image, weight, **self.rules)
        return loss, gradient, losses, reference.patch_loss_grad(prediction, image, weight, d_loss, **self.rules)


@dataclass
class Scaled:
    """A saved gradient and the number that it is multiplied by."""

    gradient: Tensor
    factor: Tensor

    def solve(self) -> Sequence[Tensor]:
        return (gradients.scale(self.gradient.clone(), self.factor),)

    def judge(self, results: Sequence[Tensor]) -> Mapping[str, float]:
        return {"product": 0.0 if torch.equal(results[0], self.gradient * self.factor) else float("inf")}


def _scaled(factor: float, target: Target, dtype: str, seed: int) -> Scaled:
    size = 5000 if target.small else 12_345_678
    numbers = torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(target.device, DTYPES[dtype][0])
    return Scaled(numbers, torch.tensor(factor, device=target.device))


def _patches(
    batch: int, channels: int, grid: int, patch: int, error: str, pixels: str, target: Target, dtype: str, seed: int
) -> Patches:
    generator = torch.Generator().manual_seed(seed)
    of = DTYPES[dtype][0]
    length, numbers, side = grid * grid, patch * patch * channels, grid * patch

    def inside(values: Tensor, kind: torch.dtype) -> Tensor:
        outside = 255 if kind == torch.uint8 else float("nan")
        around = torch.full([size + 2 for size in values.shape], outside, dtype=kind, device=target.device)
        view = around[tuple(slice(1, -1) for _ in values.shape)]
        return view.copy_(values)

    if pixels == "uint8":
        levels = torch.randint(0, 256, (batch, channels, side, side), generator=generator)
        image, scale = inside(levels, torch.uint8), 1 / 255
    else:
        image, scale = inside(torch.randn(batch, channels, side, side, generator=generator), of), 1.0
    weight = torch.rand(batch, length, generator=generator)
    return Patches(
        inside(torch.randn(batch, 1 + length, numbers, generator=generator), of),
        image,
        torch.where(weight < 0.75, weight + 0.1, 0.0).to(target.device),
        torch.randn(batch, length, generator=generator).to(target.device),
        {
            "patch_size": patch, "normalize": error == "squared", "error": error, "beta": 0.5,
            "channels_first": error == "absolute", "scale": [scale] * channels, "shift": [0.1] * channels,
        },
        registry.backend_module("fastssl.ops.reconstruction", target.backend),
    )  # fmt: skip


def verifications(target: Target) -> list[Verification]:
    batch, grid = (2, 2) if target.small else (64, 14)
    return [
        Verification(
            f"{channels} channels of {pixels}, patches of {patch} pixels, {error}",
            dtype,
            partial(_patches, batch, channels, grid if patch < 32 else 2, patch, error, pixels, target, dtype),
        )
        for dtype in ("float32", "bfloat16", "float16")
        for channels, patch, error, pixels in (
            (3, 16, "squared", "float"),
            (3, 16, "squared", "uint8"),
            (3, 14, "smooth_l1", "float"),
            (3, 32, "absolute", "float"),
            (1, 8, "squared", "float"),
            (4, 8, "smooth_l1", "uint8"),
        )
    ] + [
        Verification(f"a gradient times {factor}", dtype, partial(_scaled, factor, target, dtype))
        for dtype in ("float32", "bfloat16", "float16")
        for factor in (1.0, 0.3)
    ]


def cases(target: Target) -> list[Case]:
    if target.small:
        return [_case(4, 32, "float32", target.device)]
    return [_case(batch, 224, dtype, target.device) for batch, dtype in
            ((1024, "bfloat16"), (1024, "float32"), (256, "bfloat16"))]  # fmt: skip


def _case(batch: int, size: int, dtype: str, device: str) -> Case:
    return Case.named({"B": batch, "H": size, "p": 16, "masked": 0.75}, dtype, device)


def baselines(case: Case) -> list[str]:
    compiled = ["compiled-lean", "compiled"] if case.device == "cuda" else []
    return ["eager", "lightly", *compiled]


GPU = GpuFamily(patch_loss.FAMILY, verifications, cases, baselines)
