"""Statements about the augmentation kernels in Triton; run by ``test_triton_interpreter.py`` under TRITON_INTERPRET=1.

Truth is ``reference.py`` in float64: float32 views are within 2e-5 of it before normalisation, as everywhere on the CPU
(on a GPU buffers are fp16, and a grey level is allowed). Memory is filled with NaN before the kernels write it.
"""

from __future__ import annotations

import contextlib
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

assert os.environ.get("TRITON_INTERPRET") == "1", "run tests/test_triton_interpreter.py"

from harness import poisoned_outputs  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

from fastssl.kernels.augment import record as record_of_kernels  # noqa: E402
from fastssl.kernels.augment import sampling  # noqa: E402
from fastssl.kernels.augment.config import TILES  # noqa: E402
from fastssl.kernels.tiles import Tile  # noqa: E402
from fastssl.ops.augment import record, reference, triton  # noqa: E402
from fastssl.ops.augment.record import Code, Kind  # noqa: E402

# the interpreter computes in NumPy, which warns where a lane outside the view divides by its zero weights
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

ALLOWED = 2e-5
# Small tiles of different shapes, so that small views have many; programs go through several of them.
SMALL_TILES = {
    "resample": Tile(8, 32, 0, 4, 1),
    "blur_rows": Tile(16, 16, 0, 4, 1),
    "barrier": Tile(16, 8, 0, 4, 1),
    "draw": Tile(1, 4096, 0, 1, 1),
}
FIRST_CHANNELS = [0.5, 0.4, 0.3, 0.6, 0.2, 0.7, 0.1]


@pytest.fixture(autouse=True)
def small_tiles_and_poisoned_memory(monkeypatch):
    monkeypatch.setattr(triton, "PARTS", 2)
    with poisoned_outputs(), TILES.override(**SMALL_TILES):
        yield


def images_of(batch, channels, height, width, layout="CHW", seed=0):
    """Random bytes below 200, as a view into a buffer of 255: what is read beside them is too bright."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 200, (batch, channels, height, width), generator=generator).byte()
    order = (0, 2, 3, 1) if layout == "HWC" else (0, 1, 2, 3)
    back = [order.index(axis) for axis in range(4)]
    around = torch.full([values.shape[axis] + 2 for axis in order], 255, dtype=torch.uint8)
    inside = around[1:-1, 1:-1, 1:-1, 1:-1].permute(back)
    return inside.copy_(values)


def record_of(*steps, crop=(2, 3, 8, 11), flips=(0, 0), turns=0, slots=0):
    """The numbers of one image: steps (code, a, b, ...), followed by empty ones up to ``slots``."""
    numbers = [*crop, *flips, turns, 0]
    for step in (*steps, *[(0,)] * (slots - len(steps))):
        numbers += [*step, *(0,) * (record.STEP - len(step))]
    return numbers


def solve(backend, images, records, size, *, bicubic=False, passes=-1, mean=0.0, std=1.0, dtype=torch.float32):
    images = [images] if isinstance(images, torch.Tensor) else images
    channels = images[0].shape[-3]
    return backend.augment_views(
        images,
        [torch.tensor(records, dtype=torch.float32) if isinstance(records, list) else records],
        heights=[size[0]],
        widths=[size[1]],
        bicubic=[bicubic],
        passes=[passes],
        mean=[mean] * channels if isinstance(mean, float) else mean,
        std=[std] * channels if isinstance(std, float) else std,
        dtype=dtype,
    )[0]


def assert_right(images, records, size, allowed=ALLOWED, **how):
    """What the kernels make, which the reference makes too."""
    dtype = how.pop("dtype", torch.float32)
    barriers = [sum(int(code) in record.BARRIERS for code in numbers[8::6]) for numbers in records]
    how = {"passes": max(barriers), **how}
    truth = solve(reference, images, records, size, dtype=torch.float64, **how)
    got = solve(triton, images, records, size, dtype=dtype, **how)
    assert got.dtype == dtype and got.shape == truth.shape and got.is_contiguous()
    bound = allowed / torch.as_tensor(how.get("std", 1.0)).min()
    if dtype != torch.float32:
        bound = bound + torch.finfo(dtype).eps / 2 * truth.abs()
    error = (got.double() - truth).abs()
    assert (error <= bound).all(), error.flatten(1).amax(1)
    assert (truth.flatten(1).abs().amax(1) > 1e-3).all(), "zeros would pass"
    return got


EVERY_STEP = [
    (Code.NOTHING,),
    (Code.BRIGHTNESS, 1.3),
    (Code.CONTRAST, 0.4),
    (Code.CONTRAST, 1.7),
    (Code.SATURATION, 0.3),
    (Code.SATURATION, 1.8),
    (Code.HUE, 0.1),
    (Code.HUE, -0.45),
    (Code.GRAYSCALE,),
    (Code.SOLARIZE, 0.5),
    (Code.BLUR, 1.3, 9),
    (Code.BLUR, 0.2, 4),
    (Code.BLUR, 8.0, 1001),  # as wide as can be reflected
    (Code.BLUR, 0.0, 9),  # nothing
    (Code.BLUR, 1.0, 1),
    (Code.ROTATE, 25.0, 1, 0.3),
    (Code.ROTATE, -200.0, 1, 0.8),
    (Code.ROTATE, 90.0, 0, 0.3),
    (Code.ROTATE, 37.0, 0, 0.6),
    (Code.CUTOUT, 3, 5, 8, 4, 0.7),
    (Code.CUTOUT, -2, 10, 6, 100, -1),
    (Code.NOISE, 0.2, 0.05, 12345678, 9876543, 0),
    (Code.NOISE, 0.4, -0.1, 1, 2, 1),
    (Code.SOBEL,),
    (12, 1, 2, 3, 4, 5),  # unknown: nothing
]


def test_every_step_alone():
    records = [record_of(step) for step in EVERY_STEP]
    mean, std = FIRST_CHANNELS[:3], FIRST_CHANNELS[-3:]
    assert_right(images_of(len(records), 3, 18, 23), records, (9, 13), mean=mean, std=std)


def test_every_step_that_knows_colors_on_gray_images():
    records = [record_of(step) for step in EVERY_STEP if step[0] in record.COLOR_CODES]
    assert_right(images_of(len(records), 1, 18, 23), records, (9, 13), mean=0.4, std=0.3)


def test_steps_that_mix_channels_do_nothing_to_other_numbers_of_channels():
    steps = [(Code.SATURATION, 0.3), (Code.HUE, 0.2), (Code.GRAYSCALE,), (Code.CONTRAST, 0.4)]
    images = images_of(1, 4, 18, 23).expand(5, -1, -1, -1)
    views = solve(triton, images, [record_of(slots=1), *(record_of(step) for step in steps)], (9, 13))
    assert torch.equal(views, views[:1].expand_as(views))


@pytest.mark.parametrize("channels", [2, 7])
def test_any_number_of_channels(channels):
    steps = [s for s in EVERY_STEP if s[0] in (Code.BRIGHTNESS, Code.BLUR, Code.ROTATE, Code.CUTOUT, Code.NOISE)]
    records = [record_of(step, (Code.SOBEL,)) for step in steps[::4]]
    mean, std = FIRST_CHANNELS[:channels], FIRST_CHANNELS[::-1][:channels]
    assert_right(images_of(len(records), channels, 18, 23, "HWC"), records, (9, 13), mean=mean, std=std)


@pytest.mark.parametrize(
    "seed, size, dtype",
    [(0, (9, 13), torch.float32), pytest.param(1, (18, 18), torch.bfloat16, marks=pytest.mark.exhaustive)],
)
def test_random_programs_in_random_orders(seed, size, dtype):
    # without what jumps at a threshold, which rounding before it may cross
    smooth = [step for step in EVERY_STEP if step[0] != Code.SOLARIZE and not (step[0] == Code.ROTATE and not step[2])]
    rng = np.random.default_rng(seed)
    records = [
        record_of(
            *(smooth[i] for i in rng.integers(0, len(smooth), 3)),
            crop=(rng.integers(4), rng.integers(4), rng.integers(1, 15), rng.integers(1, 20)),
            flips=rng.integers(0, 2, 2),
            turns=rng.integers(4),
        )
        for _ in range(4)
    ]
    assert_right(images_of(4, 3, 18, 23, "HWC"), records, size, 5 * ALLOWED, dtype=dtype, std=0.25)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_views_in_16_bits(dtype):
    steps = [(Code.CONTRAST, 0.5), (Code.HUE, 0.1), (Code.BLUR, 1.0, 5)]
    records = [record_of(*steps[:n], slots=3) for n in (0, 2, 3)]  # ends in each kernel
    assert_right(images_of(3, 3, 18, 23), records, (9, 13), dtype=dtype, mean=0.45, std=0.22)


# of width 1 only where the height stays: torch's interpolation is wrong where both change
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), pytest.param((8, 32), marks=pytest.mark.exhaustive), (9, 33)])
def test_views_of_any_size(size):
    steps = [(Code.CONTRAST, 0.5), (Code.BLUR, 2.0, 7), (Code.ROTATE, 10.0, 1, 0.3), (Code.SOBEL,)]
    records = [record_of(step, (Code.NOISE, 0.1, 0.0, 5, 6, 1), crop=(2, 3, 5, 4)) for step in steps]
    assert_right(images_of(4, 3, 18, 23), records, size)


@pytest.mark.parametrize("size", [(9, 13), pytest.param((16, 16), marks=pytest.mark.exhaustive)])
def test_every_flip_and_turn(size):
    records = [record_of(flips=(n & 1, n >> 1 & 1), turns=n >> 2) for n in range(16)]
    assert_right(images_of(16, 1, 18, 23), records, size)


@pytest.mark.parametrize("bicubic", [False, True])
def test_extreme_crops(bicubic):
    crops = [(0, 0, 1, 1), (24, 24, 1, 1), (0, 0, 25, 25), (3, 5, 22, 2), (17, 0, 1, 25), (1, 2, 9, 8)]
    assert_right(images_of(6, 3, 25, 25), [record_of(crop=crop) for crop in crops], (8, 9), bicubic=bicubic)


def test_a_crop_of_the_views_size_is_a_copy():
    images = images_of(2, 3, 20, 20)
    views = solve(triton, images, [record_of(crop=(2, 3, 8, 9)), record_of(crop=(12, 11, 8, 9))], (8, 9))
    assert torch.allclose(255 * views[1], images[1, :, 12:, 11:].float(), rtol=1e-6)


@pytest.mark.parametrize("bicubic", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_twenty_times_smaller(bicubic):
    records = [record_of(crop=crop) for crop in ((3, 4, 60, 6), (3, 4, 3, 101))]
    assert_right(images_of(2, 1, 70, 110), records, (3, 5), bicubic=bicubic)


@pytest.mark.parametrize("view", [20_011, pytest.param(19_990, marks=pytest.mark.exhaustive)])
def test_pixels_far_from_the_edge_of_a_wide_photograph(view):
    # in fp32 the centre of a tap is off by 1e-3 of a pixel here
    with TILES.override(**SMALL_TILES | {"resample": Tile(1, 4096, 0, 4, 1)}):
        assert_right(images_of(1, 1, 1, 20_000), [record_of(crop=(0, 0, 1, 20_000))], (1, view))


@pytest.mark.parametrize("layout, channels", [("CHW", 1), ("HWC", 3)])
def test_stacks_in_any_layout(layout, channels):
    images = images_of(4, channels, 18, 23, layout)
    records = [record_of(turns=turns) for turns in (0, 1)]
    assert_right(images[::2], records, (14, 14))
    assert_right(images[:2, :, 1::2, ::2], [record_of(crop=(1, 2, 11, 12))] * 2, (14, 14))
    assert_right(images[:1].expand(2, -1, -1, -1), records, (14, 14))


@pytest.mark.parametrize("count", [3, 18])
def test_lists_of_images_of_any_size_and_layout(count):
    # up to 16 images the table is written by a kernel
    images = [images_of(1, 3, 5 + n, 29 - n, "HWC" if n % 2 else "CHW", seed=n)[0] for n in range(count)]
    steps = [(Code.CONTRAST, 0.5)] if count == 3 else []
    records = [record_of(*steps, crop=(n // 2, 1, 4, 9)) for n in range(count)]
    assert_right(images, records, (7, 9))


def test_several_views_of_one_call():
    images = images_of(2, 3, 18, 23)
    records = [[record_of((Code.BLUR, 1.0, 5))] * 2, [record_of(slots=0)] * 2]
    tensors = [torch.tensor(each, dtype=torch.float32) for each in records]
    how = {"heights": [9, 18], "widths": [12, 5], "bicubic": [True, False], "passes": [1, 0]}
    how |= {"mean": [0.5] * 3, "std": [0.2] * 3, "dtype": torch.float32}
    got = triton.augment_views([images], tensors, **how)
    for n, view in enumerate(got):
        alone = solve(triton, images, tensors[n], view.shape[2:], bicubic=n == 0, passes=-1, mean=0.5, std=0.2)
        assert torch.equal(view, alone)


def test_with_enough_passes_views_are_whole_and_with_fewer_they_are_nan():
    steps = [(Code.CONTRAST, 0.5), (Code.GRAYSCALE,), (Code.BLUR, 1.0, 5)]
    records = [record_of(*steps[:n], slots=3) for n in range(4)]
    images = images_of(4, 3, 18, 23)
    whole = solve(triton, images, records, (9, 13))
    assert whole.isfinite().all()
    for passes, done in ((0, 1), (1, 3), (2, 4)):
        views = solve(triton, images, records, (9, 13), passes=passes)
        assert torch.equal(views[:done], whole[:done]) and views[done:].isnan().all()


def test_long_records():
    steps = [(Code.NOTHING,)] * 20 + [(Code.BLUR, 1.0, 3), (Code.BRIGHTNESS, 1.5), (Code.CONTRAST, 0.3)]
    records = [record_of(*steps), record_of(*steps[::-1])]
    assert_right(images_of(2, 3, 18, 23), records, (9, 13), passes=2)


def test_images_that_take_turns_in_the_buffers_give_the_same_bits(monkeypatch):
    images, records = images_of(5, 3, 18, 23), [record_of(step) for step in EVERY_STEP[1:22:4][:5]]
    together = solve(triton, images, records, (9, 13))
    monkeypatch.setattr(triton, "BUFFER_BYTES", 2 * 3 * 9 * 13 * 4 + 8)
    before = images.clone()
    assert torch.equal(solve(triton, images, records, (9, 13)), together)
    assert torch.equal(images, before)


def test_noise_is_the_definitions():
    # 20 000 numbers, among them ends of the distribution
    records = [record_of((Code.NOISE, 1.0, 0.0, 16777215, 3, 0))]
    with TILES.override(**SMALL_TILES | {"resample": Tile(64, 128, 0, 4, 1)}):
        views = assert_right(torch.zeros(1, 4, 4, 4, dtype=torch.uint8), records, (50, 100))
    assert views.abs().max() > 3.5 and abs(views.std() - 1) < 0.02


# What a record may do to memory


@contextlib.contextmanager
def memory_watched(*tensors):
    """Fails at the first address that is read or written outside of tensors: these, and what is allocated meanwhile."""
    known = list(tensors)
    empty, load, store = torch.empty, interpreter._interpreter.load, interpreter._interpreter.store

    def new(*shape, **options):
        known.append(empty(*shape, **options))
        return known[-1]

    def check(p, m):
        p = np.broadcast_to(p, np.broadcast_shapes(p.shape, m.shape))[np.broadcast_to(m, p.shape)]
        fits = np.zeros(p.shape, bool)
        for tensor in known:
            last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) * tensor.itemsize
            fits |= (p >= tensor.data_ptr()) & (p <= tensor.data_ptr() + last)
        assert fits.all(), "outside of memory"

    def watched_load(p, m, *rest):
        check(p, m)
        return load(p, m, *rest)

    def watched_store(p, x, m):
        check(p, m)
        return store(p, x, m)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", new)
        patch.setattr(interpreter, "_interpreter", SimpleNamespace(load=watched_load, store=watched_store))
        yield


BAD_NUMBERS = [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, -7.0, 1e9, 0.5, 33.3, 2**24]


@pytest.mark.parametrize("ragged", [False, True])
def test_garbage_in_records_reads_and_writes_nothing_outside(ragged):
    rng = np.random.default_rng(ragged)
    count = 6
    numbers = rng.choice(BAD_NUMBERS, (count, 8 + 6 * 2))
    numbers[:, 8::6] = rng.choice([*range(13), float("nan"), 1e30], (count, 2))
    numbers[::3, :8] = record_of()
    records = torch.tensor(numbers, dtype=torch.float32)
    stack = images_of(count, 3, 12, 14)
    images = list(stack) if ragged else stack
    with memory_watched(*stack if ragged else [stack], records):
        views = solve(triton, images, records, (9, 9))
    assert views.shape == (count, 3, 9, 9)


def test_a_watched_kernel_that_leaves_its_memory_is_seen():
    images = images_of(2, 3, 12, 14)
    with pytest.raises(interpreter.InterpreterError, match="outside"), memory_watched(images[:1]):
        solve(triton, images, [record_of()] * 2, (9, 9))


@pytest.mark.parametrize("bicubic", [False, True])
def test_boxes_that_are_not_in_the_image_are_moved_into_it(bicubic):
    nan, inf = float("nan"), float("inf")
    boxes = [(-5, 8, 100, 2.9), (nan, inf, -3, nan), (17.9, 30, 9, 9), (1e30, -1e30, 1e30, 1e30), (3.7, 4.2, 0, 11.99)]
    assert_right(images_of(5, 3, 18, 23), [record_of(crop=box) for box in boxes], (9, 9), bicubic=bicubic)


# Records


def program_of(*entries):
    """Entries (kind, probability, group, a0, ...)."""
    return [float(x) for entry in entries for x in (*entry, *(0,) * (record.ENTRY - len(entry)))]


EVERYTHING = [
    (Kind.HORIZONTAL_FLIP, 0.5, 1),
    (Kind.VERTICAL_FLIP, 0.3, 2),
    (Kind.QUARTER_TURN, 0.7, 3),
    (Kind.JITTER, 0.8, 4, 0.6, 1.4, 0.6, 1.4, 0.6, 1.4, -0.1, 0.1),
    (Kind.GRAYSCALE, 0.2, 5),
    (Kind.SOLARIZE, 0.2, 5, 0.5),
    (Kind.BLUR, 0.5, 7, 0.1, 2.0, 23),
    (Kind.ROTATE, 0.5, 8, -90, 90, 1, 0.25),
    (Kind.CUTOUT, 0.9, 9, 0.02, 0.33, 0.3, 3.3, -1),
    (Kind.NOISE, 0.5, 10, 0.1, 0.2, 1),
    (Kind.SOBEL, 0.5, 11),
    (Kind.JITTER, 0.5, 4, 1, 1, 0.5, 0.5, 1, 1.5, 0, 0),
    (Kind.CUTOUT, 1.0, 13, 0.9, 1.2, 0.3, 3.3, 0.5),  # seldom fits
]
CROPS = [
    (Kind.RESIZED_CROP, 1, 0, 0.08, 1.0, 3 / 4, 4 / 3),
    (Kind.RESIZED_CROP, 1, 0, 0.9, 1.0, 3 / 4, 4 / 3),  # seldom fits
    (Kind.RESIZED_CROP, 1, 0, 1.5, 2.0, 1.0, 1.0),  # never
    (Kind.WHOLE, 1, 0),
    (Kind.CENTER, 1, 0, 0.875),
    (Kind.CROP, 1, 0),
]


def draws(index, crop, steps=(), *, sizes=None, size=(96, 120), view=(32, 48), seed=7, epoch=0, number=0):
    how = {"height": size[0], "width": size[1], "out_height": view[0], "out_width": view[1], "seed": seed}
    how |= {"epoch": epoch, "view": number, "program": program_of(crop, *steps)}
    drawn = triton.view_parameters(index, sizes, **how)
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn, reference.view_parameters(index, sizes, **how))
    return drawn


@pytest.mark.parametrize("seed, epoch, number", [(0, 0, 0), (2**64 - 3, 2**32 - 1, 2**32 - 1), (-5, 12, 1)])
def test_records_of_thousands_of_keys_are_the_references(seed, epoch, number):
    index = torch.arange(1500) * 1_234_567_891
    drawn = draws(index, CROPS[0], EVERYTHING, seed=seed, epoch=epoch, number=number)
    codes = drawn[:, 8::6]
    assert (codes != 0).any(0).all() and (codes == 0).any(0).all()
    assert len(drawn.unique(dim=0)) == len(index)


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("size", [(96, 120), (40, 300), (300, 40), (1, 1)])
def test_every_crop_of_every_shape(crop, size):
    drawn = draws(torch.arange(100), crop, size=size)
    top, left, height, width = drawn[:, :4].unbind(1)
    assert (top + height <= size[0]).all() and (left + width <= size[1]).all() and (drawn[:, :2] >= 0).all()


@pytest.mark.parametrize("crop", CROPS)
def test_images_of_different_sizes_draw_their_own_crops(crop):
    sizes = torch.tensor([[50, 60], [1, 999], [999, 1], [3000, 4000], [224, 224]])
    mixed = draws(torch.arange(5), crop, sizes=sizes)
    assert torch.equal(mixed[3:4], draws(torch.tensor([3]), crop, size=(3000, 4000)))


def test_kernels_and_records_use_the_same_numbers():
    assert {code.name: getattr(record_of_kernels, code.name).value for code in Code} == {c.name: c.value for c in Code}
    for name in ("HEADER", "STEP"):
        assert getattr(record_of_kernels, name).value == getattr(record, name)
    for name in ("ENTRY", "BLOCKS", "TRIES"):
        assert getattr(sampling, name).value == getattr(record, name)
