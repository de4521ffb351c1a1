"""The masking kernels, and MAE's encoder input made of them, on a GPU: what ``gpu.py`` verifies and times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastssl.ops import registry
from fastssl.ops.masking import reference

from . import masking
from .cases import DTYPES, Case
from .gpu_family import GpuFamily, Target, Verification


@dataclass
class Exact:
    """A function of the backends whose results must be the definition's, bit for bit: tokens are small integers."""

    function: str
    arguments: tuple[Tensor | None, ...]
    keywords: Mapping[str, Any]
    backend: ModuleType

    def solve(self) -> Sequence[Tensor]:
        result = getattr(self.backend, self.function)(*self.arguments, **self.keywords)
        return (result,) if isinstance(result, Tensor) else result

    def judge(self, results: Sequence[Tensor]) -> Mapping[str, float]:
        wanted = getattr(reference, self.function)(*self.arguments, **self.keywords)
        truth = (wanted,) if isinstance(wanted, Tensor) else wanted
        return {
            f"output {number}": 0.0 if torch.equal(one.nan_to_num(77), want.nan_to_num(77)) else float("inf")
            for number, (one, want) in enumerate(zip(results, truth, strict=True))
        }


def exact(function: str, target: Target, arguments: Sequence[Tensor | None], **keywords: Any) -> Exact:
    backend = registry.backend_module("fastssl.ops.masking", target.backend)
    moved = tuple(None if tensor is None else tensor.to(target.device) for tensor in arguments)
    return Exact(function, moved, keywords, backend)


def integers(seed: int, dtype: str, *shape: int) -> Tensor:
    """Numbers from -2 to 2, whose sums are exact."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, shape, generator=generator).to(DTYPES[dtype][0])


def places(seed: int, images: int, length: int) -> Tensor:
    """A permutation for each image; the first image's repeats a place, the last one's has one out of range."""
    order = torch.rand(images, length, generator=torch.Generator().manual_seed(seed)).argsort(1)
    order[0, : length // 3] = order[0, 0]
    order[-1, 0] = length + 1
    return order


def sizes_of(target: Target) -> tuple[int, int, int, int]:
    """Images, patches, patches that stay, dimension."""
    return (3, 20, 5, 40) if target.small else (37, 196, 49, 776)


def _masks(length: int, target: Target, dtype: str, seed: int) -> Exact:
    noise = torch.randn(5, length, generator=torch.Generator().manual_seed(seed)).to(DTYPES[dtype][0])
    noise[0, length // 2] = torch.nan
    return exact("masks_from_noise", target, [noise], keep=max(1, length // 4))


def _drawn(length: int, target: Target, seed: int) -> Exact:
    key = {"seed": seed - 2**62, "epoch": 2**32 - 1, "view": 3}
    return exact("random_masks", target, [torch.tensor([0, 7, 2**40 + 7])], length=length, keep=1, **key)


def _gather(prefix: int, with_pos: bool, target: Target, dtype: str, seed: int) -> Exact:
    images, length, kept, dim = sizes_of(target)
    x, ids = integers(seed, dtype, images, length, dim), places(seed, images, length)[:, :kept]
    pos = integers(seed + 1, "float32", prefix + length, dim) if with_pos else None
    first = integers(seed + 2, "float32", prefix, dim) if prefix else None
    return exact("gather_tokens", target, [x, ids, pos, first], dtype=x.dtype)


def _gather_grad(prefix: int, for_positions: bool, target: Target, dtype: str, seed: int) -> Exact:
    images, length, kept, dim = sizes_of(target)
    gradient, ids = integers(seed, dtype, images, prefix + kept, dim), places(seed, images, length)[:, :kept]
    settings = {"length": length, "prefix": prefix, "dtype": gradient.dtype}
    return exact(
        "gather_tokens_grad", target, [gradient, ids], **settings, for_tokens=True, for_positions=for_positions
    )


def _patches(pixels: torch.dtype, target: Target, dtype: str, seed: int) -> Exact:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (3, 3, 32, 48), generator=generator).to(pixels)
    ids = torch.randint(0, 7, (3, 4), generator=generator)  # 6 is out of range
    std = 1 / 255 if pixels == torch.uint8 else 1.0  # pixels stay whole numbers
    settings = {"patch_height": 16, "patch_width": 16, "mean": [0.0] * 3, "std": [std] * 3}
    return exact("visible_patches", target, [images, ids], **settings, dtype=DTYPES[dtype][0])


def verifications(target: Target) -> list[Verification]:
    lengths = (1, 5, 40, 64) if target.small else (1, 100, 196, 1024)
    out = [
        Verification(f"random masks of {length} patches", "float32", partial(_drawn, length, target))
        for length in lengths
    ]
    for dtype in ("float32", "bfloat16", "float16"):
        out += [
            Verification(f"masks of {length} patches", dtype, partial(_masks, length, target, dtype))
            for length in lengths
        ]
        for prefix, positions in ((1, True), (0, True), (0, False)):
            title = f"{prefix} class tokens, {'with' if positions else 'without'} positions"
            out.append(Verification(f"gather, {title}", dtype, partial(_gather, prefix, positions, target, dtype)))
            title = f"gradient of gather, {title}"
            out.append(Verification(title, dtype, partial(_gather_grad, prefix, positions, target, dtype)))
        for pixels in (torch.uint8, torch.float32):
            title = f"patches of {str(pixels).removeprefix('torch.')}"
            out.append(Verification(title, dtype, partial(_patches, pixels, target, dtype)))
    return out


def cases(target: Target) -> list[Case]:
    if target.small:
        return [_case(2, 12, 16, "float32", target.device)]
    wanted = [(1024, 196, 768, "bfloat16"), (1024, 196, 768, "float32"), (256, 196, 1024, "bfloat16")]
    return [_case(*sizes, target.device) for sizes in wanted]


def _case(b: int, length: int, d: int, dtype: str, device: str) -> Case:
    return Case.named({"B": b, "L": length, "D": d, "ratio": 0.75}, dtype, device)


def baselines(case: Case) -> list[str]:
    return ["eager", "eager-lean", *(["compiled", "compiled-lean"] if case.device == "cuda" else [])]


GPU = GpuFamily(masking.FAMILY, verifications, cases, baselines)
