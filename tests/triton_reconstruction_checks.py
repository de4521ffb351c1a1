"""Statements about the Triton kernel of the patch loss; run by ``test_triton_interpreter.py`` under TRITON_INTERPRET=1.

The bounds are those of ``ops/test_reconstruction.py``, with the Triton backend forced on CPU tensors.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

assert os.environ.get("TRITON_INTERPRET") == "1", "run tests/test_triton_interpreter.py"

sys.path.insert(0, str(Path(__file__).parent / "ops"))
import test_reconstruction as checks  # noqa: E402

import fastssl  # noqa: E402
from fastssl.kernels.reconstruction import config  # noqa: E402
from fastssl.ops import triton_scale  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN and infinity: IEEE rules are relied on


@pytest.fixture(autouse=True)
def small_blocks_on_the_cpu(monkeypatch):
    monkeypatch.setattr(config, "BLOCK", 64)
    with fastssl.backend("triton"):
        yield


def problem(**changed):
    """Few patches: a program takes milliseconds in the interpreter. The first image's last patch is left out."""
    prediction, image, weight = checks.problem(**{"batch": 1, "grid": (1, 3), **changed})
    weight = torch.ones_like(weight)
    weight[0, -1] = 0
    return prediction, image, weight


@pytest.mark.parametrize(
    "dtype, channels, patch",
    [(torch.float32, 3, 4), (torch.bfloat16, 3, 4), (torch.float16, 3, 4), (torch.float32, 2, 5), (torch.float32, 4, 6),
     (torch.float32, 1, 7)],
)  # fmt: skip
def test_losses_and_gradients_match_float64(dtype, channels, patch):
    for channels_first in (False, True):
        inputs = problem(channels=channels, patch=patch, dtype=dtype, tokens=patch % 2)
        checks.check(inputs, patch_size=patch, channels_first=channels_first)


@pytest.mark.parametrize("error", ["squared", "absolute", "smooth_l1"])
@pytest.mark.parametrize("normalize", [False, True])
def test_every_error(error, normalize):
    checks.check(problem(), error=error, normalize=normalize)


@pytest.mark.parametrize("dtype, image_dtype", [(torch.float32, torch.uint8), (torch.float16, torch.float32)])
def test_images_of_another_dtype(dtype, image_dtype):
    checks.check(problem(dtype=dtype, image_dtype=image_dtype))


def test_any_strides_and_what_is_left_out_is_not_read():
    prediction, image, weight = problem()
    expected = checks.run("patch_loss_step", prediction, image, weight, **checks.rules())
    prediction[0, -1] = torch.nan
    image[..., -4:] = torch.nan
    forms = [
        (prediction, image.contiguous(memory_format=torch.channels_last), weight),
        (checks.in_band(prediction), checks.in_band(image), checks.in_band(weight)),
        (torch.cat([torch.full_like(prediction[:, :1], torch.nan), prediction], 1), image, weight),
    ]
    for form in forms:
        loss, gradient = checks.run("patch_loss_step", *form, **checks.rules())
        assert torch.equal(loss, expected[0]) and torch.equal(gradient[:, -3:], expected[1])
        assert (gradient[:, :-3] == 0).all() and (gradient[:, -1] == 0).all()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_nan_in_nan_out(which):
    inputs = problem()
    inputs[which][(0, 1, 5) if which == 0 else (0, 2, 1, 6) if which == 1 else (0, 1)] = torch.nan
    for error in ("squared", "absolute", "smooth_l1"):
        loss = checks.run("patch_loss", *inputs, **checks.rules(error=error))
        gradient = checks.run("patch_loss_grad", *inputs, torch.ones_like(loss), **checks.rules(error=error))
        assert loss.isnan().tolist() == [[False, True, False]]
        assert gradient.isnan().sum((0, 2)).tolist() == [0, 1 if which == 0 else 48, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gradient_times_a_number_on_the_device(dtype):
    around = torch.full((5003,), 7.0, dtype=dtype)
    x = around[1:-2]  # more than a program takes at once, and not a multiple of it
    x.copy_(torch.randn(5000))
    x[3], x[4999] = torch.nan, torch.inf
    before = x.clone()
    for factor in (1.0, 0.3, float("nan"), 0.0):
        x.copy_(before)
        assert triton_scale.scale(x, torch.tensor(factor)) is x
        wanted = before if factor == 1 else before * torch.tensor(factor)
        assert torch.equal(x.nan_to_num(77), wanted.nan_to_num(77)) and torch.equal(x.isnan(), wanted.isnan())
    assert (around[0], *around[-2:]) == (7, 7, 7)
    assert triton_scale.scale(x[:0], torch.tensor(2.0)).numel() == 0
