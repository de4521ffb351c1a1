"""The kernels of MAE's decoder input on a GPU: what ``gpu.py`` verifies and times."""

from __future__ import annotations

from functools import partial

from . import unshuffle
from .gpu_family import GpuFamily, Target, Verification
from .gpu_masking import Exact, baselines, cases, exact, integers, places, sizes_of


def _forward(prefix: int, with_pos: bool, target: Target, dtype: str, seed: int) -> Exact:
    images, length, kept, dim = sizes_of(target)
    x, restore = integers(seed, dtype, images, prefix + kept, dim), places(seed, images, length)
    pos = integers(seed + 1, "float32", prefix + length, dim) if with_pos else None
    arguments = [x, restore, integers(seed + 2, "float32", 1, dim), pos]
    return exact("unshuffle_tokens", target, arguments, prefix=prefix, dtype=x.dtype)


def _backward(prefix: int, everything: bool, target: Target, dtype: str, seed: int) -> Exact:
    images, length, kept, dim = sizes_of(target)
    gradient, restore = integers(seed, dtype, images, prefix + length, dim), places(seed, images, length)
    settings = {"keep": kept, "prefix": prefix, "dtype": gradient.dtype}
    wanted = {"for_tokens": True, "for_mask": everything, "for_positions": everything}
    return exact("unshuffle_tokens_grad", target, [gradient, restore], **settings, **wanted)


def verifications(target: Target) -> list[Verification]:
    out = []
    for dtype in ("float32", "bfloat16", "float16"):
        for prefix, full in ((1, True), (0, True), (0, False)):
            title = f"{prefix} class tokens, {'with' if full else 'without'} positions"
            out.append(Verification(f"unshuffle, {title}", dtype, partial(_forward, prefix, full, target, dtype)))
            title = f"gradient of unshuffle, {title}"
            out.append(Verification(title, dtype, partial(_backward, prefix, full, target, dtype)))
    return out


GPU = GpuFamily(unshuffle.FAMILY, verifications, cases, baselines)
