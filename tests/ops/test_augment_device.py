"""The code of the CUDA kernels on a machine without a GPU: compiled for the host, block by block, thread by thread.

Everything but the launches themselves, the sums over a block and the storage in half precision is what a GPU runs
(tests/cpp/augment_device.cpp), so that it can be held to the definition in float64.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from augment_cases import (
    EVERYTHING,
    MEAN,
    SIMCLR,
    STD,
    STEPS,
    assert_same_view,
    entry,
    options,
    pictures,
    program,
    record,
    truth,
)
from compiled import alone_in
from torch import Tensor

from fastssl import _extension
from fastssl.ops.augment import cuda, reference
from fastssl.ops.augment.record import ENTRY, HEADER, STEP, Code, Kind, record_length, steps_of

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shlex.split(os.environ.get("CXX") or "c++")

pytestmark = pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def device(tmp_path_factory) -> ctypes.CDLL:
    """The kernels' code as a library of the host."""
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
    source = ROOT / "tests" / "cpp" / "augment_device.cpp"
    with alone_in("device", tmp_path_factory) as folder:
        output = folder / "device.so"
        if not output.exists():
            result = subprocess.run([*COMPILER, *flags, str(source), "-o", str(output)], capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
        return ctypes.CDLL(str(output))


def pointer(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def draw(library, index: Tensor, sizes: Tensor, rows: list[float], size, *, at_once: int = 40, **key: int) -> Tensor:
    """Records as ``reference.view_parameters`` gives them; `at_once` entries of the program in a launch."""
    records = torch.full((len(index), record_length(steps_of(rows))), torch.nan)
    numbers = torch.tensor(rows, dtype=torch.float64)
    library.view_parameters(
        pointer(index), pointer(sizes), ctypes.c_int64(len(index)), *size, ctypes.c_uint64(key["seed"]),
        ctypes.c_uint32(key["epoch"]), ctypes.c_uint32(key["view"]), pointer(numbers), len(rows) // ENTRY, at_once,
        pointer(records),
    )  # fmt: skip
    return records


def augment(library, images: Tensor | Sequence[Tensor], records: Tensor, **asked) -> Tensor:
    """One view, as ``reference.augment_views`` gives it."""
    (height,), (width,), (bicubic,), (passes,) = (asked[name] for name in ("heights", "widths", "bicubic", "passes"))
    first, table = images[0], None
    stack = torch.zeros(7, dtype=torch.int64)
    if isinstance(images, Tensor):
        stack = torch.tensor([images.data_ptr(), *first.shape[1:], *images.stride()])
    else:
        table = torch.tensor([[image.data_ptr(), *image.shape[1:], *image.stride()] for image in images])
    out = torch.full((len(records), len(first), height, width), 12345.0)
    mean, std = (torch.tensor(asked[name], dtype=torch.float32) for name in ("mean", "std"))
    library.augment_view(
        pointer(table), pointer(stack), len(records), len(first), pointer(records), (records.shape[1] - HEADER) // STEP,
        passes, height, width, ctypes.c_bool(bicubic), pointer(mean), pointer(std), pointer(out),
    )  # fmt: skip
    return out


def check(library, images, records: Tensor, size: tuple[int, int], what: str = "", **more) -> None:
    channels = images[0].shape[0]
    asked = options([size], channels, **more)
    (expected,) = truth(images, [records], **asked)
    assert_same_view(augment(library, images, records, **asked), expected, asked["std"], what)


# --- the generator and the records ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers of the Random123 library
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(device, counter, key, expected):
    words = (ctypes.c_uint32 * 4)()
    device.philox4x32((ctypes.c_uint32 * 4)(*counter), (ctypes.c_uint32 * 2)(*key), words)
    assert tuple(words) == expected


GROUPED = [
    *entry(Kind.CENTER, 1.0, 0.875, group=0),
    *entry(Kind.GRAYSCALE, 0.5, group=1),
    *entry(Kind.SOLARIZE, 0.3, 0.5, group=1),
    *entry(Kind.QUARTER_TURN, 0.7, group=2),
]
PROGRAMS = {
    "SimCLR": SIMCLR,
    "everything": EVERYTHING,
    "grouped": GROUPED,
    "whole": program((Kind.WHOLE, 1.0, ()), (Kind.JITTER, 1.0, (1, 1, 0.5, 1.5, 1, 1, 0, 0))),
    "crop": program((Kind.CROP, 1.0, ())),
    "narrow": program((Kind.RESIZED_CROP, 1.0, (0.9, 1.0, 3, 4))),  # often none of ten tries fits
    "flat": program((Kind.RESIZED_CROP, 1.0, (0.9, 1.0, 0.2, 0.3))),
}


@pytest.mark.parametrize("at_once", [40, 3])
@pytest.mark.parametrize("name", PROGRAMS)
def test_records_are_those_of_the_definition_to_the_last_bit(device, name, at_once):
    rows = PROGRAMS[name]
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, 2**40, (3000,), generator=generator)
    sizes = torch.randint(1, 700, (3000, 2), generator=generator)
    size, key = (96, 96), dict(seed=2**63 + 12345, epoch=7, view=3)
    expected = reference.view_parameters(
        index, sizes, height=1, width=1, out_height=size[0], out_width=size[1], program=rows, **key
    )
    records = draw(device, index, sizes, rows, size, at_once=at_once, **key)
    assert torch.equal(records, expected)
    assert len(records.unique(dim=0)) > 1000  # they are no constant


# --- one step, one crop ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [3, 1, 5])
@pytest.mark.parametrize("name", STEPS)
def test_each_step_is_the_definitions(device, name, channels):
    """Views of two tiles each way, the last of them partly outside."""
    images = pictures(4, channels, 50, 90)
    records = torch.stack([record(*STEPS[name], crop=(3, 2, 45, 80))] * 4)
    check(device, images, records, (39, 75), name)


@pytest.mark.parametrize("sigma, kernel", [(2.4, 25), (2.6, 25), (2.6, 27), (9.0, 41), (3.0, 999)])
def test_a_blur_in_a_tile_and_one_beyond_it_are_the_same_thing(device, sigma, kernel):
    """Twelve pixels to each side are the most that a tile holds."""
    images = pictures(2, 3, 40, 90)
    records = torch.stack([record((Code.CONTRAST, 1.5), (Code.BLUR, sigma, kernel), crop=(0, 0, 40, 90))] * 2)
    check(device, images, records, (37, 66))


@pytest.mark.parametrize("side", [(1, 1), (1, 9), (9, 1), (2, 3)])
@pytest.mark.parametrize("name", ["blur wider than the view", "sobel", "rotate, filled", "noise", "jitter"])
def test_views_of_a_few_pixels(device, name, side):
    images = pictures(4, 3, 12, 13)
    check(device, images, torch.stack([record(*STEPS[name], crop=(1, 2, 9, 9))] * 4), side, name)


CROPS = {
    "whole": (0, 0, 61, 47),
    "one pixel": (60, 46, 1, 1),
    "a row": (7, 0, 1, 47),
    "enlarged": (20, 10, 9, 12),
    "outside": (-5, 1e30, 1e9, float("nan")),
}


@pytest.mark.parametrize("bicubic", [False, True], ids=["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(61, 47), (33, 65), (5, 4), (40, 40)])
@pytest.mark.parametrize("crop", CROPS)
def test_crops_of_any_size_are_resampled(device, crop, size, bicubic):
    for channels in (1, 3):
        images = pictures(2, channels, 61, 47)
        check(device, images, torch.stack([record(crop=CROPS[crop])] * 2), size, bicubic=bicubic)


def test_a_large_photograph_is_shrunk(device):
    images = pictures(1, 3, 1500, 2100)
    check(device, images, record(crop=(11, 13, 1481, 2070))[None], (70, 66))
    check(device, images, record(crop=(11, 13, 1481, 2070))[None], (70, 66), bicubic=True)


@pytest.mark.parametrize("size", [(40, 40), (70, 70), (30, 41)])
def test_flips_and_quarter_turns(device, size):
    records = torch.stack([
        record((Code.NOISE, 0.1, 0, 5, 6, 0), crop=(1, 2, 40, 30), flips=(x, y), turns=turns)
        for x in (0, 1) for y in (0, 1) for turns in range(-1, 4)
    ])  # fmt: skip
    check(device, pictures(len(records), 3, 45, 37), records, size)


# --- batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_drawn_views_of_a_batch(device, channels):
    """Each image has its own steps, and so its own number of passes."""
    images = pictures(12, channels, 64, 52)
    key = dict(height=64, width=52, out_height=48, out_width=48, seed=1, epoch=2)
    for view, rows in enumerate([SIMCLR, EVERYTHING]):
        records = reference.view_parameters(torch.arange(12), None, program=rows, view=view, **key)
        check(device, images, records, (48, 48))


def test_memory_of_any_layout(device):
    images = pictures(3, 3, 30, 40)
    records = torch.stack([record((Code.HUE, 0.1), crop=(1, 2, 20, 30))] * 3)
    (expected,) = truth(images, [records], **options([(24, 20)]))
    as_decoded = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    spread = torch.zeros(6, 3, 60, 120, dtype=torch.uint8)[::2, :, ::2, ::3].copy_(images)
    for source in (images, as_decoded, spread, list(images), list(as_decoded)):
        view = augment(device, source, records, **options([(24, 20)]))
        assert_same_view(view, expected, STD)


def test_a_list_of_images_of_any_size(device):
    images = [pictures(1, 3, 20 + 9 * i, 70 - 11 * i)[0] for i in range(5)]
    images[1] = images[1].permute(1, 2, 0).contiguous().permute(2, 0, 1)
    records = torch.stack([record((Code.CONTRAST, 0.5), crop=(3, 2, 15, 19))] * 5)
    check(device, images, records, (17, 33))


def test_more_channels_than_a_launch_takes(device):
    images = pictures(1, 67, 9, 8)
    steps = [(Code.NOISE, 0.2, 0, 5, 6, 1), (Code.BLUR, 1.0, 3), (Code.CUTOUT, 1, 1, 3, 3, -1)]
    check(device, images, record(*steps, crop=(0, 0, 9, 8))[None], (7, 8))


# --- the number of launches -----------------------------------------------------------------------------------------


def test_an_image_with_more_barriers_than_launches_is_nan_and_leaves_the_others_alone(device):
    images = pictures(3, 3, 20, 20)
    steps = [(Code.CONTRAST, 1.2), (Code.HUE, 0.1), (Code.BLUR, 1.0, 5)]
    records = torch.stack([record(*steps[:n], *[(0.0,)] * (3 - n), crop=(0, 0, 20, 20)) for n in (3, 2, 0)])
    (expected,) = truth(images, [records], **options([(20, 20)]))
    for passes, right in ((0, [False, False, True]), (1, [False, True, True]), (2, [True] * 3), (-1, [True] * 3)):
        view = augment(device, images, records, **{**options([(20, 20)]), "passes": [passes]})
        for image, is_right in enumerate(right):
            if is_right:
                assert_same_view(view[image], expected[image], STD)
            else:
                assert view[image].isnan().all()


def test_numbers_that_are_none_lead_nowhere_else(device):
    """What pixels they give is of no account; that memory outside is left alone, sanitizers show in test_build.py."""
    bad = [float("nan"), float("inf"), -float("inf"), 1e38, -1e38, -1.0, 0.0]
    images = pictures(len(bad), 3, 20, 30)
    for code in range(-1, 13):
        steps = [[float(code), *[x] * 5] for x in bad]
        records = torch.stack(
            [record(step, crop=(x,) * 4, flips=(x, x), turns=x) for step, x in zip(steps, bad, strict=True)]
        )
        view = augment(device, images, records, **options([(17, 17)]))
        assert not (view == 12345.0).any(), code
    assert MEAN != STD


# --- the launcher ---------------------------------------------------------------------------------------------------


class HostKernels:
    """Takes the place of fastssl._CUDA: its arguments are those of the module, its work is done by the library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.module = _extension.load("_CUDA")
        self.launches: list[tuple[int, int]] = []

    def AugmentProblem(self, **arguments) -> SimpleNamespace:
        if self.module is not None:
            self.module.AugmentProblem(**arguments)  # TypeError for an argument that it does not have
        return SimpleNamespace(**arguments)

    def augment_workspace(self, problem: SimpleNamespace, images: int) -> int:
        return 100 * images

    def augment_view(self, problem, *, mean, std, workspace, workspace_bytes, device, stream) -> None:
        assert workspace and workspace_bytes >= 100
        self.launches.append((device, stream))
        stack = torch.tensor([problem.data, *problem.stack])
        mean, std = torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)
        self.library.augment_view(
            ctypes.c_void_p(problem.table or None), pointer(stack), problem.batch, problem.channels,
            ctypes.c_void_p(problem.parameters), problem.steps, problem.passes, problem.height, problem.width,
            ctypes.c_bool(problem.bicubic), pointer(mean), pointer(std), ctypes.c_void_p(problem.out),
        )  # fmt: skip

    def write_table(self, *, numbers, out, device, stream) -> None:
        self.launches.append((device, stream))
        ctypes.memmove(out, (ctypes.c_int64 * len(numbers))(*numbers), 8 * len(numbers))

    def view_parameters(self, *, index, sizes, batch, height, width, program, out, device, stream, **key) -> None:
        self.launches.append((device, stream))
        same = torch.tensor([[height, width]] * batch)
        numbers = torch.tensor(program, dtype=torch.float64)
        self.library.view_parameters(
            ctypes.c_void_p(index), ctypes.c_void_p(sizes) if sizes else pointer(same), ctypes.c_int64(batch),
            key["out_height"], key["out_width"], ctypes.c_uint64(key["seed"]), ctypes.c_uint32(key["epoch"]),
            ctypes.c_uint32(key["view"]), pointer(numbers), len(program) // ENTRY, 40, ctypes.c_void_p(out),
        )  # fmt: skip


@pytest.fixture
def launched(device, monkeypatch) -> HostKernels:
    """The launcher of the CUDA kernels, brought to take CPU tensors."""
    kernels = HostKernels(device)
    monkeypatch.setattr(cuda, "kernels", lambda: kernels)
    monkeypatch.setattr(cuda, "on_device_of", lambda x: contextlib.nullcontext())
    monkeypatch.setattr(cuda, "where_to_launch", lambda x: {"device": 3, "stream": 77})
    return kernels


def test_the_launcher_draws_records(launched):
    index, sizes = torch.arange(40).repeat_interleave(2)[::2], torch.randint(30, 90, (2, 40)).T
    for given in (sizes, None):
        asked = dict(height=50, width=60, out_height=32, out_width=40, seed=-5, epoch=4, view=1, program=EVERYTHING)
        records = cuda.view_parameters(index, given, **asked)
        assert torch.equal(records, reference.view_parameters(index, given, **asked))
    assert launched.launches == [(3, 77)] * 2


def test_the_launcher_makes_views_of_stacks_and_of_lists(launched):
    images = pictures(4, 3, 44, 40).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    sizes, key = [(32, 32), (20, 24)], dict(height=44, width=40, seed=0, epoch=0)
    records = [
        reference.view_parameters(torch.arange(4), None, program=SIMCLR, view=view, out_height=h, out_width=w, **key)
        for view, (h, w) in enumerate(sizes)
    ]
    asked = options(sizes)
    expected = truth(images, records, **asked)
    for source, launches in (([images], 2), (list(images), 3), ([images[0]], 3)):
        launched.launches.clear()
        given = [each[: len(images) if source[0].ndim == 4 else len(source)] for each in records]
        views = cuda.augment_views(source, given, dtype=torch.float32, **asked)
        for view, truth_of_view in zip(views, expected, strict=True):
            assert_same_view(view, truth_of_view[: len(view)], STD)
        assert launched.launches == [(3, 77)] * launches
