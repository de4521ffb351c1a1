"""The patch loss operators, on every backend that this machine has, against float64 and the papers' formulas."""

from __future__ import annotations

import pytest
import torch
from harness import BACKENDS, DTYPES, assert_as_accurate_as_eager, poisoned_outputs, serving

import fastssl
from fastssl import functional
from fastssl.compat.mae import forward_loss
from fastssl.compat.solo import mae_loss_func
from fastssl.losses import MAELoss, SimMIMLoss
from fastssl.ops.reconstruction import reference

RULES = {"patch_size": 4, "normalize": True, "error": "squared", "beta": 0.5, "channels_first": False}


def serve(backend, device, dtype=torch.float32):
    return serving(backend, device, dtype, "patch_loss")


def random(*shape, dtype=torch.float32, device="cpu", seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).to(device)


def pictures(*shape, dtype=torch.float32, device="cpu", seed=1):
    """Pixels far from 0, so that a variance as the difference of two large numbers would show."""
    if dtype == torch.uint8:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(device)
    return (random(*shape, dtype=torch.float64, seed=seed) * 0.1 + 3).to(dtype).to(device)


def problem(batch=3, channels=3, grid=(3, 5), patch=4, dtype=torch.float32, image_dtype=None, device="cpu", tokens=0):
    """Predictions, image, weights; about half the weights are 0."""
    patches = grid[0] * grid[1]
    image = pictures(batch, channels, grid[0] * patch, grid[1] * patch, dtype=image_dtype or dtype, device=device)
    prediction = random(batch, tokens + patches, patch * patch * channels, dtype=dtype, device=device, seed=2)
    weight = random(batch, patches, dtype=torch.float64, seed=3)
    weight = torch.where(weight > 0, weight + 0.1, 0.0)
    weight[0, 0] = 1.0
    return prediction, image, weight.to(torch.float64 if dtype == torch.float64 else torch.float32).to(device)


def rules(channels=3, **changed):
    of_pixels = {"scale": [2.0, 0.5, 1.5, 1.0][:channels], "shift": [0.1, -0.2, 0.0, 1.0][:channels]}
    return {**RULES, **of_pixels, **changed}


def run(name, *inputs, **keywords):
    return getattr(torch.ops.fastssl, name)(*inputs, **keywords, backend=fastssl.backends.forced())


def check(inputs, *, kernel_sees=None, **changed):
    """All three operators against the reference in float64, and eager PyTorch as the yardstick.

    ``kernel_sees`` changes the inputs for the kernel alone: a test that the yardstick notices.
    """
    keywords = rules(inputs[1].shape[1], **changed)
    seen = inputs if kernel_sees is None else kernel_sees(*inputs)
    image = inputs[1] if inputs[1].dtype == torch.uint8 else inputs[1].double()
    true = inputs[0].double(), image, inputs[2].double()

    difference = reference._difference(*true[:2], *(keywords[k] for k in list(keywords) if k not in ("error", "beta")))
    target = reference.patches(image, keywords["patch_size"], keywords["channels_first"], keywords["scale"],
                               keywords["shift"], torch.float64)  # fmt: skip
    size = target.abs()
    if keywords["normalize"]:  # a rounding of the pixels becomes one of the normalised pixels
        size = (size + size.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
    size = size + difference.abs() + inputs[0][:, inputs[0].shape[1] - size.shape[1] :].double().abs()
    slope = 2 if keywords["error"] == "squared" else 1
    of_loss = true[2] * (slope * difference.abs() * size + (size if keywords["error"] != "squared" else 0)).mean(2)
    of_gradient = (
        true[2][:, :, None]
        * slope
        * size
        / size.shape[2]
        / (keywords["beta"] if keywords["error"] == "smooth_l1" else 1)
    )
    left_out = inputs[0].shape[1] - size.shape[1]
    of_gradient = torch.nn.functional.pad(of_gradient, (0, 0, left_out, 0))

    with poisoned_outputs():
        actual = run("patch_loss", *seen, **keywords)
    eager, truth = reference.patch_loss(*inputs, **keywords), reference.patch_loss(*true, **keywords)
    assert_as_accurate_as_eager(actual, eager, truth, of_loss, "loss")

    d_loss = random(*inputs[2].shape, dtype=inputs[2].dtype, device=inputs[2].device, seed=9)
    with poisoned_outputs():
        actual = run("patch_loss_grad", *seen, d_loss, **keywords)
    eager = reference.patch_loss_grad(*inputs, d_loss, **keywords)
    truth = reference.patch_loss_grad(*true, d_loss.double(), **keywords)
    bound = torch.nn.functional.pad(d_loss.double().abs(), (left_out, 0))[:, :, None] * of_gradient
    assert actual.is_contiguous()
    assert_as_accurate_as_eager(actual, eager, truth, bound, "gradient")
    assert ((actual == 0) | (truth != 0)).all(), "what is left out has a gradient"

    if inputs[0].dtype == torch.float16:
        return
    with poisoned_outputs():
        loss, actual = run("patch_loss_step", *seen, **keywords)
    eager_loss, eager = reference.patch_loss_step(*inputs, **keywords)
    true_loss, truth = reference.patch_loss_step(*true, **keywords)
    of_sum = of_loss.sum().reshape(1)
    assert_as_accurate_as_eager(
        loss.reshape(1), eager_loss.reshape(1), true_loss.reshape(1), of_sum, "sum of the losses"
    )
    assert_as_accurate_as_eager(actual, eager, truth, of_gradient, "gradient at once")


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize(
    ("batch", "channels", "grid", "patch"),
    [
        (1, 3, (1, 1), 16),
        (3, 3, (3, 5), 4),
        (2, 1, (2, 3), 7),
        (2, 2, (2, 1), 5),
        (2, 4, (1, 2), 6),
        (1, 3, (2, 2), 33),
    ],
)
def test_losses_and_gradients_match_float64(backend, device, dtype, batch, channels, grid, patch):
    with serve(backend, device, dtype):
        for channels_first in (False, True):
            inputs = problem(batch, channels, grid, patch, dtype, device=device, tokens=patch % 2)
            check(inputs, patch_size=patch, channels_first=channels_first)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("error", ["squared", "absolute", "smooth_l1"])
@pytest.mark.parametrize("normalize", [False, True])
def test_every_error_matches_float64(backend, device, error, normalize):
    with serve(backend, device):
        for beta in (0.5, 1.3):
            check(problem(device=device), error=error, normalize=normalize, beta=beta)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "image_dtype"),
    [
        (torch.float32, torch.uint8),
        (torch.bfloat16, torch.uint8),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.float16, torch.float32),
        (torch.float64, torch.float32),
        (torch.float64, torch.uint8),
    ],
)
def test_images_of_another_dtype(backend, device, dtype, image_dtype):
    with serve(backend, device, dtype):
        check(problem(dtype=dtype, image_dtype=image_dtype, device=device))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, y, w: (x.clone().index_fill_(2, torch.tensor([47]), 0.0), y, w),
        lambda x, y, w: (x, y.roll(1, 3), w),
        lambda x, y, w: (x, y.flip(1), w),
        lambda x, y, w: (x, y, w.clone().index_fill_(1, torch.tensor([0]), 0.0)),
        lambda x, y, w: (torch.zeros_like(x), y, w),
    ],
    ids=["last number", "pixels", "channels", "weight", "prediction"],
)
def test_the_yardstick_notices_what_a_kernel_may_skip(backend, device, wrong):
    with serve(backend, device):
        inputs = problem(device=device)
        check(inputs)
        with pytest.raises(AssertionError):
            check(inputs, kernel_sees=wrong)


def in_band(tensor):
    """The same values inside a buffer of NaN (255 for uint8), a step away from every end."""
    shape = [size + 2 for size in tensor.shape]
    outside = 255 if tensor.dtype == torch.uint8 else float("nan")
    view = tensor.new_full(shape, outside)[tuple(slice(1, -1) for _ in shape)]
    return view.copy_(tensor)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("image_dtype", [torch.float32, torch.uint8])
def test_any_strides_give_the_same_bits(backend, device, dtype, image_dtype):
    def assert_same(results, wanted, name):
        for a, b in zip(results, wanted, strict=True):
            if backend == "chunked":  # PyTorch's sums take another order
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, msg=name)
            else:
                assert torch.equal(a, b), name

    with serve(backend, device, dtype):
        for patch in (4, 16):
            prediction, image, weight = problem(patch=patch, dtype=dtype, image_dtype=image_dtype, device=device)
            keywords = rules(patch_size=patch)
            expected = run("patch_loss_step", prediction, image, weight, **keywords)
            images = {
                "channels last": image.contiguous(memory_format=torch.channels_last),
                "in a band": in_band(image),
                "turned": image.transpose(2, 3).contiguous().transpose(2, 3),
                "every other pixel": image.repeat_interleave(2, 3)[..., ::2],
                "channels last in a band": in_band(image.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2),
            }
            for name, each in images.items():
                assert_same(run("patch_loss_step", prediction, each, weight, **keywords), expected, name)
            others = {
                "in a band": in_band(prediction),
                "numbers apart": prediction.transpose(1, 2).contiguous().transpose(1, 2),
                "patches first": prediction.transpose(0, 1).contiguous().transpose(0, 1),
            }
            for name, each in others.items():
                assert_same(run("patch_loss_step", each, image, in_band(weight), **keywords), expected, name)
            with_token = torch.cat([torch.full_like(prediction[:, :1], torch.nan), prediction], 1)
            loss, gradient = run("patch_loss_step", with_token, image, weight, **keywords)
            assert_same((loss, gradient[:, 1:]), expected, "class token")
            assert (gradient[:, 0] == 0).all()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("normalize", [False, True])
def test_visible_patches_are_not_read(backend, device, normalize):
    with serve(backend, device):
        prediction, image, weight = problem(device=device)
        keywords = rules(normalize=normalize)
        loss, gradient = run("patch_loss_step", prediction, image, weight, **keywords)
        visible = (weight == 0).view(3, 1, 3, 5).repeat_interleave(4, 2).repeat_interleave(4, 3)
        image, prediction = image.masked_fill(visible, torch.nan), prediction.clone()
        prediction[weight == 0] = torch.nan
        same_loss, same = run("patch_loss_step", prediction, image, weight, **keywords)
        assert torch.equal(same_loss, loss) and torch.equal(same, gradient)
        assert (gradient[weight == 0] == 0).all() and (gradient[weight != 0] != 0).all()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("error", ["squared", "absolute", "smooth_l1"])
def test_nan_in_nan_out(backend, device, error):
    with serve(backend, device):
        for which in (0, 1, 2):
            inputs = [tensor.clone() for tensor in problem(device=device)]
            inputs[2].fill_(1.0)
            inputs[which][(1, 7, 5) if which == 0 else (1, 2, 5, 6) if which == 1 else (1, 6)] = torch.nan
            keywords = rules(error=error)
            loss = run("patch_loss", *inputs, **keywords)
            place = 7 if which == 0 else 6
            assert loss.isnan().nonzero().tolist() == [[1, place]]
            gradient = run("patch_loss_grad", *inputs, torch.ones_like(loss), **keywords)
            broken = gradient.isnan()
            assert broken.any(2).nonzero().tolist() == [[1, place]]
            assert broken[1, place].sum() == (1 if which == 0 else 48)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_input_gives_the_same_bits(backend, device, dtype):
    with serve(backend, device, dtype):
        inputs = problem(batch=7, grid=(6, 6), patch=16, dtype=dtype, device=device)
        first = run("patch_loss_step", *inputs, **rules(patch_size=16))
        for _ in range(3):
            for a, b in zip(run("patch_loss_step", *inputs, **rules(patch_size=16)), first, strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_inputs_are_not_written(backend, device):
    with serve(backend, device):
        inputs = problem(device=device)
        before = [tensor.clone() for tensor in inputs]
        run("patch_loss_step", *inputs, **rules())
        run("patch_loss_grad", *inputs, torch.ones_like(inputs[2]), **rules())
        assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_constant_patches_have_a_finite_target(backend, device):
    """Their variance is 0, and 1e-6 stands alone under the root."""
    with serve(backend, device):
        prediction, image, weight = problem(device=device)
        image[:] = 0.7
        check((prediction, image, weight), scale=[1.0] * 3, shift=[0.0] * 3)


def facebook(imgs, pred, mask, patch, normalize):
    """The formula of the paper's code, as a formula."""
    batch, channels, height, width = imgs.shape
    target = imgs.reshape(batch, channels, height // patch, patch, width // patch, patch)
    target = torch.einsum("nchpwq->nhwpqc", target).reshape(batch, -1, patch**2 * channels)
    if normalize:
        mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6) ** 0.5
    loss = ((pred - target) ** 2).mean(-1)
    return (loss * mask).sum() / mask.sum()


def masked(shape, share=0.75, dtype=torch.float64):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(4)) < share).to(dtype)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("height", "width", "patch"), [(48, 48, 16), (28, 42, 14), (15, 9, 3)])
def test_equals_the_formulas_of_mae(backend, device, normalize, height, width, patch):
    imgs = random(2, 3, height, width, dtype=torch.float64, device=device)
    patches = height // patch * (width // patch)
    mask = masked((2, patches)).to(device)
    with serve(backend, device, torch.float64):
        expected = random(2, patches, patch**2 * 3, dtype=torch.float64, device=device, seed=1).requires_grad_()
        actual = expected.detach().clone().requires_grad_()
        wanted = facebook(imgs, expected, mask, patch, normalize)
        wanted.backward()
        losses = [
            forward_loss(imgs, actual, mask, patch, normalize),
            mae_loss_func(imgs, actual, mask, patch, normalize),
            MAELoss(patch, normalize)(imgs, actual, mask.bool()),
        ]
        for loss in losses:
            torch.testing.assert_close(loss, wanted, rtol=1e-13, atol=0)
            (gradient,) = torch.autograd.grad(loss, actual)
            torch.testing.assert_close(gradient, expected.grad, rtol=1e-12, atol=1e-17)


def test_equals_lightly():
    utils = pytest.importorskip("lightly.models.utils")
    images, mask = random(2, 3, 32, 32, dtype=torch.float64), masked((2, 4)).bool()
    prediction = random(2, 4, 768, dtype=torch.float64, seed=1).requires_grad_()
    target = utils.normalize_mean_var(utils.patchify(images, 16), dim=-1)
    expected = torch.nn.functional.mse_loss(prediction[mask], target[mask])
    (wanted,) = torch.autograd.grad(expected, prediction)
    actual = MAELoss(16)(images, prediction, mask)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(actual, prediction)[0], wanted, rtol=1e-11, atol=1e-17)


@pytest.mark.parametrize("error", ["absolute", "squared", "smooth_l1"])
def test_equals_the_formula_of_simmim(error):
    images, mask = random(2, 3, 32, 48, dtype=torch.float64), masked((2, 2, 3))
    rows = random(2, 6, 768, dtype=torch.float64, seed=1).requires_grad_()
    pixels = torch.nn.functional.pixel_shuffle(rows.transpose(1, 2).reshape(2, 768, 2, 3), 16)
    difference = pixels - images
    losses = {
        "absolute": difference.abs(),
        "squared": difference.square(),
        "smooth_l1": torch.nn.functional.smooth_l1_loss(pixels, images, reduction="none", beta=0.3),
    }[error]
    of_pixels = mask.repeat_interleave(16, 1).repeat_interleave(16, 2).unsqueeze(1)
    expected = (losses * of_pixels).sum() / (of_pixels.sum() + 1e-5) / 3
    (wanted,) = torch.autograd.grad(expected, rows)
    criterion = SimMIMLoss(16, error, beta=0.3)
    actual = criterion(images, rows, mask)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(actual, rows)[0], wanted, rtol=1e-12, atol=1e-17)
    assert criterion(images, rows, torch.zeros_like(mask)) == 0


def test_mean_and_std_apply_to_bytes_between_0_and_1():
    images = pictures(2, 3, 8, 8, dtype=torch.uint8)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    normalised = (images.double() / 255 - torch.tensor(mean)[:, None, None].double()) / torch.tensor(std).double()[
        :, None, None
    ]
    prediction, mask = random(2, 4, 48, dtype=torch.float64), torch.ones(2, 4)
    actual = functional.patch_loss(images, prediction, mask, patch_size=4, mean=mean, std=std)
    expected = functional.patch_loss(normalised, prediction, mask, patch_size=4)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)  # the lists above are float32 in between


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_without_a_masked_patch_it_is_0_by_0(backend, device):
    with serve(backend, device):
        prediction, image, _ = problem(device=device)
        prediction.requires_grad_()
        expected = facebook(image, prediction, torch.zeros(3, 15, device=device), 4, False)
        loss = functional.patch_loss(image, prediction, torch.zeros(3, 15, device=device), patch_size=4)
        assert expected.isnan() and loss.isnan()
        for each in (expected, loss):
            assert torch.autograd.grad(each, prediction)[0].isnan().all()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_gradcheck(backend, device):
    with serve(backend, device, torch.float64):
        prediction, image, weight = problem(1, 3, (1, 2), 2, torch.float64, device=device, tokens=1)
        prediction.requires_grad_()
        for error in ("squared", "absolute", "smooth_l1"):
            for reduction in ("mean", "none"):
                torch.autograd.gradcheck(
                    lambda x, error=error, reduction=reduction: functional.patch_loss(
                        image, x, weight, patch_size=2, normalize=True, error=error, beta=0.4, reduction=reduction
                    ),
                    prediction,
                )


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_opcheck(backend, device):
    with serve(backend, device):
        prediction, image, weight = problem(2, 3, (2, 2), 4, device=device, tokens=1)
        keywords = {**rules(), "backend": fastssl.backends.forced()}
        d_loss = torch.ones_like(weight)
        torch.library.opcheck(torch.ops.fastssl.patch_loss, (prediction.requires_grad_(), image, weight), keywords)
        for operator, inputs in (
            (torch.ops.fastssl.patch_loss_step, (prediction, image, weight)),
            (torch.ops.fastssl.patch_loss_grad, (prediction.detach(), image, weight, d_loss)),
        ):
            torch.library.opcheck(operator, inputs, keywords, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_second_backward_pass_and_accumulation_leave_everything_as_it_was(backend, device, dtype):
    with serve(backend, device, dtype):
        leaf, image, _ = problem(dtype=dtype, device=device)
        mask = masked((3, 15), dtype=torch.float32).to(device)
        kept = leaf.clone()
        leaf.requires_grad_()

        def loss():
            return functional.patch_loss(image, leaf * 1, mask, patch_size=4)

        (once,) = torch.autograd.grad(loss(), leaf)
        value = loss()
        value.backward(retain_graph=True)
        assert torch.equal(leaf.grad, once)
        (4 * value).backward()
        torch.testing.assert_close(leaf.grad.float(), 5 * once.float(), rtol=8 * torch.finfo(dtype).eps, atol=1e-6)
        assert torch.equal(leaf.detach(), kept)
        with pytest.raises(RuntimeError, match="second time"):
            value.backward()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_compiled_equals_eager(backend, device):
    with serve(backend, device):
        leaf, image, _ = problem(device=device)
        leaf.requires_grad_()
        mask = masked((3, 15), dtype=torch.float32).to(device)

        def loss(x):
            return 3 * functional.patch_loss(image, x * 1, mask, patch_size=4, normalize=True)

        expected = loss(leaf)
        (wanted,) = torch.autograd.grad(expected, leaf)
        actual = torch.compile(loss, fullgraph=True, backend="aot_eager")(leaf)
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(torch.autograd.grad(actual, leaf)[0], wanted, rtol=1e-5, atol=1e-7)


def test_second_derivatives_and_vmap_raise():
    prediction, image, weight = problem()
    leaf = prediction.requires_grad_()
    for reduction in ("mean", "none"):
        loss = functional.patch_loss(image, leaf, weight, patch_size=4, reduction=reduction).sum()
        with pytest.raises(RuntimeError, match="second derivatives of the fused losses are not implemented"):
            (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
            gradient.square().sum().backward()
    with pytest.raises(NotImplementedError, match=r"does not support torch\.vmap"):
        torch.vmap(lambda x: functional.patch_loss(image, x, weight, patch_size=4))(
            torch.stack([prediction.detach()] * 2)
        )


def test_gradient_in_float16_survives_a_loss_scaler():
    image, mask = random(16, 3, 64, 64) * 0.1, torch.ones(16, 16)
    leaf = (random(16, 16, 768, seed=1) * 0.01).half().requires_grad_()
    functional.patch_loss(image, leaf, mask).mul(2.0**12).backward()
    exact = leaf.detach().double().requires_grad_()
    functional.patch_loss(image, exact, mask).mul(2.0**12).backward()
    error = (leaf.grad.double() - exact.grad).abs().max() / exact.grad.abs().max()
    assert error < 1e-3 and (leaf.grad != 0).float().mean() > 0.9
    halves = (exact.grad / 2.0**12).half().double() * 2.0**12
    assert (halves - exact.grad).abs().max() / exact.grad.abs().max() > 3 * error, (
        "without a scaler nothing would be lost"
    )


IMAGE, PREDICTION, MASK = torch.zeros(2, 3, 8, 12), torch.zeros(2, 6, 48), torch.ones(2, 6)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"image": "x"}, TypeError, r"image must be a tensor \[B, C, H, W\], got str"),
        ({"image": IMAGE[0]}, ValueError, r"image must be \[B, C, H, W\] with .* got \(3, 8, 12\)"),
        ({"image": torch.zeros(2, 5, 8, 12)}, ValueError, "with 1 to 4 channels, got .2, 5, 8, 12."),
        ({"image": IMAGE.long()}, TypeError, "image must be dense uint8, .* got torch.strided of torch.int64"),
        ({"image": IMAGE.double()}, ValueError, "a float64 image needs a float64 prediction, got torch.float32"),
        ({"image": IMAGE.clone().requires_grad_()}, ValueError, "image must not require a gradient"),
        ({"patch_size": 5}, ValueError, "patch_size must divide the image's height and width, 8 and 12, got 5"),
        ({"patch_size": 4.0}, TypeError, "patch_size must be an int, got float"),
        ({"patch_size": 0}, ValueError, "patch_size must be at least 1, got 0"),
        ({"prediction": PREDICTION[:, :5]}, ValueError, r"row per patch, .*\(2, 6 or more, 48\), got \(2, 5, 48\)"),
        ({"prediction": PREDICTION[:, :, :47]}, ValueError, r"\(2, 6 or more, 48\), got \(2, 6, 47\)"),
        ({"prediction": PREDICTION.long()}, TypeError, "prediction must have one of the dtypes .* got torch.int64"),
        ({"prediction": PREDICTION[0]}, ValueError, r"prediction must have shape \[B, L, patch_size\^2 C\]"),
        ({"mask": MASK.long()}, TypeError, "mask must be bool or floating, got torch.int64"),
        ({"mask": MASK[:, :5]}, ValueError, r"mask must .* per patch, \(2, 6\) or \(2, 2, 3\), got \(2, 5\)"),
        ({"error": "l2"}, ValueError, "error must be one of 'squared', 'absolute', 'smooth_l1', got 'l2'"),
        ({"beta": 0}, ValueError, "beta must be finite and above 0, got 0"),
        ({"eps": -1}, ValueError, "eps must be finite and at least 0, got -1"),
        ({"mean": [0.5]}, ValueError, "mean must have a number per channel of the image, 3, got 1"),
        ({"std": [0.5, 0, 1]}, ValueError, "std must be finite and above 0, got 0"),
        ({"reduction": "sum"}, ValueError, "reduction must be one of 'mean', 'none', got 'sum'"),
    ],
)  # fmt: skip
def test_bad_input_is_named(changed, error, message):
    arguments = {"image": IMAGE, "prediction": PREDICTION, "mask": MASK, "patch_size": 4, **changed}
    with pytest.raises(error, match=message):
        functional.patch_loss(**arguments)


def test_bad_input_of_the_operators_is_named():
    inputs = problem()
    for changed, error, message in (
        ({2: inputs[2].double()}, ValueError, "weight must be torch.float32 of shape"),
        ({2: inputs[2][:, :4]}, ValueError, "weight must be"),
        ({0: inputs[0].half()}, TypeError, "computes no float16 gradients"),
    ):
        arguments = [changed.get(i, tensor) for i, tensor in enumerate(inputs)]
        with pytest.raises(error, match=message):
            run("patch_loss_step", *arguments, **rules())
    with pytest.raises(ValueError, match="scale and shift must have a number per channel, 3, got 2 and 3"):
        run("patch_loss", *inputs, **rules(scale=[1.0, 1.0]))
    with pytest.raises(ValueError, match="d_loss must be"):
        run("patch_loss_grad", *inputs, torch.ones(3, 4), **rules())
