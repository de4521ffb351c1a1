"""``fastssl bench augment``: two gates that let right views pass and wrong ones not, peers, workers, rates."""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import time
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from fastssl.benchmarks import (
    augment,
    augment_batched,
    augment_gate,
    augment_peers,
    augment_recipes,
    cases,
    limits,
    memory,
    report,
    runner,
    timing,
    verify,
)
from fastssl.cli import bench

SIMCLR = {"B": 128, "height": 64, "width": 64, "size": 56, "strength": 1, "blur": 0.5, "local": 0, "local_size": 0}
SMALL = {**SIMCLR, "strength": 0.5, "blur": 0}
DINO = {**SIMCLR, "strength": 0, "blur": 0, "local": 2, "local_size": 24}
FEW = {**DINO, "B": 5, "size": 32}  # for what looks at each pixel


def case_of(sizes, dtype="float32"):
    return cases.Case.named(sizes, dtype, "cpu")


@pytest.fixture(autouse=True)
def steady(monkeypatch):
    monkeypatch.setattr(runner, "gc", SimpleNamespace(collect=lambda: 0))
    torch.manual_seed(0)


# --- Recipes and images ---------------------------------------------------------------------------------------------


def test_simclr_is_one_view_and_dino_two_large_and_the_small_ones():
    (one,) = augment_recipes.recipes(augment.sizes("simclr-224"))
    assert (one.size, one.scale, one.jitter, one.blur, one.kernel) == (224, (0.08, 1.0), (0.8, 0.8, 0.8, 0.2), 0.5, 23)
    first, second, *small = augment_recipes.recipes(augment.sizes("dino"))
    assert [view.size for view in (first, second, *small)] == [224, 224, *[96] * 8]
    assert (first.blur, second.blur, second.solarize, small[0].scale) == (1.0, 0.1, 0.2, (0.05, 0.4))
    assert all(view.bicubic for view in (first, second, *small))


def test_the_command_line_chooses_cases_batches_and_dtypes():
    parser = argparse.ArgumentParser()
    augment.add_arguments(parser)
    arguments = parser.parse_args(
        ["--case", "photo", "dino", "--batch", "2", "3"], argparse.Namespace(dtype=["float32"])
    )
    chosen = augment.cases(arguments, "cpu")
    assert [(case.sizes["height"], case.sizes["B"]) for case in chosen] == [(2000, 2), (2000, 3), (256, 2), (256, 3)]
    with pytest.raises(ValueError, match="--batch must be above 0, got 0"):
        augment.cases(argparse.Namespace(case=["dino"], batch=[0], dtype=["float32"]), "cpu")


def test_the_work_is_the_mean_crop_and_the_view():
    case = case_of(augment.sizes("simclr-224", 10))
    assert augment.work(case, "forward").bytes == pytest.approx(10 * 3 * (0.54 * 256 * 256 + 4 * 224 * 224))
    assert augment.views_of_a_call(case_of(augment.sizes("dino", 3))) == 30


# --- Pixel by pixel -------------------------------------------------------------------------------------------------


def judged(sizes, change, dtype="float32"):
    """The row of a fastssl whose views were changed."""
    case = case_of(sizes, dtype)
    right = augment.PROVIDERS["fastssl-chunked"].build(case)
    provider = cases.Provider(lambda case: lambda *inputs: change(right(*inputs)))
    family = dataclasses.replace(augment.FAMILY, providers={**augment.PROVIDERS, "changed": provider})
    sets = [augment.inputs(case, seed) for seed in (3, 4)]
    expected = family.truth(case, sets[-1], 0)
    row = runner.Row(case, "changed")
    errors = runner.errors_of_baseline(family, case, sets, expected)
    runner.prepare(family, row, sets, expected, errors, runner.Options(passes=("forward",)))
    return row


def element(views, number, place, by):
    views[number][place] += by
    return views


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_right_views_pass_pixel_by_pixel(dtype):
    row = judged(FEW, lambda views: views, dtype)
    assert (row.status, len(row.checks)) == ("ok", 2 * 4), row.reason


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda views: element(views, 0, (2, 1, 31, 31), 5e-4), "view 0 is off by 0.0005"),
        (lambda views: (views[0], views[1].flip(0), *views[2:]), "view 1 is off by"),
        (lambda views: (*views[:2], views[2].flip(-1), views[3]), "view 2 is off by"),
        (lambda views: (*views[:3], views[2]), "view 3 is off by"),
        (lambda views: (*views[:3], views[3][:, :, :-1]), "view 3: shape (5, 3, 23, 24) instead of (5, 3, 24, 24)"),
        (lambda views: element(views, 3, (4, 0, 0, 0), float("nan")), "view 3 is not finite"),
    ],
    ids=["a pixel", "order", "mirrored", "the same view twice", "shape", "NaN"],
)
def test_wrong_views_are_refused(change, says):
    row = judged(FEW, change)
    assert row.status == "wrong" and row.reason.startswith(says), row.reason


def test_only_pixels_next_to_the_threshold_may_be_solarized_or_not():
    case = case_of({**FEW, "B": 16})
    inputs = augment.inputs(case, 1)
    drawn = augment_gate.records(inputs[1], case.sizes)
    expected = augment_gate.truth(case, inputs, 0)

    def refused(by):
        moved = [augment_gate.moved_threshold(records, by) for records in drawn]
        views = augment_gate.by_definition(inputs[0], moved, augment_recipes.recipes(case.sizes))
        return [check.name for check in checks_of(case, views, expected) if check.reason]

    assert refused(1.5e-5) == [] and refused(-1.5e-5) == []
    assert refused(0.1) == ["view 1"]


def checks_of(case, views, expected):
    return verify.check([view.float() for view in views], expected, [0.0] * len(expected), case)


# --- By statistics --------------------------------------------------------------------------------------------------


def gated(sizes, function):
    """What the gate says against a function of images [B, 3, H, W]."""
    case = case_of(sizes)
    formed = cases.Formed(function, lambda images, index: (images.movedim(-1, 1),))
    return [
        check.reason for check in augment_gate.by_statistics(case, formed, [augment.inputs(case, 1)]) if check.reason
    ]


def batched(sizes, **changes):
    """Our lean form, of recipes that are not what was asked for."""
    asked = augment_recipes.recipes(sizes)
    made = [augment_batched.view_of(dataclasses.replace(recipe, **changes), torch.float32) for recipe in asked]
    return lambda images: tuple(view(images) for view in made)


@pytest.mark.parametrize("sizes", [SIMCLR, SMALL, DINO], ids=["SimCLR", "small", "DINO"])
def test_views_with_numbers_of_their_own_pass_by_statistics(sizes):
    assert gated(sizes, batched(sizes)) == []


@pytest.mark.parametrize(
    ("sizes", "changes", "says"),
    [
        (SIMCLR, {"blur": 0.0}, "steepness"),
        (SIMCLR, {"jitter": (0.0, 0.8, 0.8, 0.2)}, "change of brightness"),
        (SIMCLR, {"jitter": (0.8, 0.0, 0.8, 0.2)}, "change of contrast"),
        (SIMCLR, {"jitter": (0.8, 0.8, 0.0, 0.2)}, "change of saturation"),
        (SIMCLR, {"jitter": (0.8, 0.8, 0.8, 0.0)}, "hue"),
        (SIMCLR, {"scale": (0.999, 1.0)}, "crop"),
        (SMALL, {"jitter": (0.4, 0.4, 0.0, 0.1)}, "change of saturation"),
        (SMALL, {"jitter": (0.4, 0.4, 0.4, 0.0)}, "hue"),
        (DINO, {"solarize": 0.0}, "dark"),
        (DINO, {"blur": 0.0}, "steepness"),
    ],
)
def test_a_step_that_is_left_out_is_refused(sizes, changes, says):
    assert any(reason.startswith(f"{says} of view ") for reason in gated(sizes, batched(sizes, **changes)))


def test_each_view_is_judged_by_its_own_recipe():
    """DINO's two large views differ in blur and solarising alone."""
    right = batched(DINO)

    def first_twice(images):
        first, _, *small = right(images)
        return first, right(images)[0], *small

    reasons = gated(DINO, first_twice)
    assert any(reason.startswith("steepness of view 1") for reason in reasons)
    assert not any("view 0" in reason or "view 2" in reason for reason in reasons)


@pytest.mark.parametrize(("constant", "says"), [("FLIP", "flipped"), ("GRAY", "gray")])
def test_a_flip_or_grayscale_that_is_left_out_is_refused(constant, says, monkeypatch):
    monkeypatch.setattr(augment_batched, constant, 0.0)
    assert any(reason.startswith(says) for reason in gated(SMALL, batched(SMALL)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda view: view.double(), "form of view 0: torch.float64 (128, 3, 56, 56) instead of torch.float32"),
        (lambda view: view[:-1], "form of view 0: torch.float32 (127, 3, 56, 56) instead of"),
        (lambda view: view.index_fill(0, torch.tensor([5]), float("nan")), "form of view 0: not finite"),
        (lambda view: view * 1.2, "range of view 0: "),
    ],
    ids=["dtype", "shape", "NaN", "range"],
)
def test_views_of_the_wrong_form_are_refused(change, says):
    right = batched(SMALL)
    assert gated(SMALL, lambda images: tuple(map(change, right(images))))[0].startswith(says)


def test_the_same_views_again_are_refused():
    right = batched(SMALL)

    def seeded(images):
        torch.manual_seed(7)
        return right(images)

    assert "100% of the views of a second call are those of the first" in gated(SMALL, seeded)


def test_statistics_are_of_the_definition_where_the_backend_is_wrong(monkeypatch):
    wrong = augment_gate.views_of
    augment_gate._of_definition.cache_clear()
    right = augment_gate._of_definition(tuple(SMALL.items()), "cpu")
    augment_gate._of_definition.cache_clear()
    monkeypatch.setattr(augment_gate, "views_of", lambda *arguments: [view + 1 for view in wrong(*arguments)])
    found = augment_gate._of_definition(tuple(SMALL.items()), "cpu")
    augment_gate._of_definition.cache_clear()
    for recipe, moments in right.items():
        for name, (mean, variance, count) in moments.items():
            assert found[recipe][name] == pytest.approx((mean, variance, count), abs=1e-4)


# --- Our lean form --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize(("start", "length"), [(0, 40), (3, 9), (11, 29)])
def test_matrices_resize_like_interpolate(start, length, bicubic):
    recipe = dataclasses.replace(augment_recipes.recipes(SIMCLR)[0], size=16, bicubic=bicubic)
    line = torch.rand(40)
    matrix = augment_batched.resize_matrix(torch.tensor([float(start)]), torch.tensor([float(length)]), 40, recipe)[0]
    mode = "bicubic" if bicubic else "bilinear"
    piece = line[start : start + length].expand(1, 1, 4, length)
    wanted = F.interpolate(piece, (4, 16), mode=mode, antialias=True)[0, 0, 0]
    torch.testing.assert_close(matrix @ line, wanted, atol=1e-5, rtol=0)


def test_what_would_not_fit_is_not_tried(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1e9)
    case = case_of(augment.sizes("photo", 64))
    for provider in ("kornia", "batched", "compiled"):
        row = runner.Row(case, provider)
        assert runner.prepare(augment.FAMILY, row, [], [], [], runner.Options()) is None
        assert row.status == "unavailable" and row.reason.startswith("needs about ")


# --- Peers in processes of their own --------------------------------------------------------------------------------


def first_pixel(recipe):
    """A library whose views tell of which image they are."""
    return lambda image: torch.full((3, recipe.size, recipe.size), float(image[0, 0, 0]))


def test_workers_make_several_batches_of_the_set_that_was_shown():
    case = case_of({**DINO, "B": 3})
    loader = augment_peers.in_workers(first_pixel, augment_peers.as_arrays)(case)
    function = cases.Formed(loader, loader.show)
    sets = [augment.inputs(case, seed) for seed in (1, 2)]
    for images, index in (*sets, sets[0]):
        results = cases.outputs(function, (images, index))
        assert len(results) == augment_peers.BATCHES * 4
        for number, view in enumerate(results):
            side = (56, 56, 24, 24)[number % 4]
            assert torch.equal(view, images[:, 0, 0, 0].float().view(3, 1, 1, 1).expand(3, 3, side, side))


def test_the_time_of_a_call_is_that_of_one_of_its_batches(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(timing, "SAMPLES_OF_SHORT_CALLS", 1)

    def run(call):
        clock.now += 2.0

    tasks = {"four": timing.Task(run, batches=4), "one": timing.Task(run)}
    found = timing.interleave(tasks, rounds=3, budget=4.0)
    assert found["four"].median == 0.5 and found["one"].median == 2.0
    assert len(found["four"].samples) == len(found["one"].samples)


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    time.sleep(600)


def test_what_processes_of_ours_do_is_not_the_load_of_others():
    before = timing._cpu_seconds()
    if before is None:
        pytest.skip("the system does not tell")
    child = multiprocessing.get_context("fork").Process(target=burn, args=(0.3,), daemon=True)
    child.start()
    try:
        end = time.monotonic() + 60
        while timing._cpu_seconds()[1] - before[1] < 0.25 and time.monotonic() < end:
            time.sleep(0.05)
        assert timing._cpu_seconds()[1] - before[1] >= 0.25
    finally:
        child.kill()
        child.join()


def test_a_form_is_made_once_for_each_set_of_inputs():
    made = []

    def form(x):
        made.append(x)
        return (x + 1,)

    function = cases.Formed(lambda x: 2 * x, form)
    one, two = (torch.tensor([1.0]),), (torch.tensor([5.0]),)
    assert [cases.outputs(function, inputs)[0].item() for inputs in (one, two, one)] == [4, 12, 4]
    assert len(made) == 2


def test_small_numbers_are_flushed_while_a_peer_works_and_not_after():
    function = augment_peers.flushing(lambda case: lambda x: x * 0.5)(None)
    tiny = torch.tensor([torch.finfo(torch.float32).tiny])
    assert function(tiny).item() == 0.0
    assert (tiny * 0.5).item() > 0


# --- The report -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "text"), [(11549.2, "11 500"), (693800.0, "694 000"), (253.4, "253"), (12.34, "12.3"), (0.25, "0.250")]
)
def test_rates_have_three_digits(rate, text):
    assert report.rate_text(rate) == text


def test_the_command_prints_views_per_second_and_each_gate(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(limits.PRODUCT_SIZE, "cpu", 128)
    monkeypatch.setitem(limits.COPY_BYTES, "cpu", 1 << 20)
    monkeypatch.setattr(timing, "SAMPLES_OF_SHORT_CALLS", 1)
    monkeypatch.setattr(augment_gate, "VIEWS", 96)
    monkeypatch.setattr(memory, "peak_extra_bytes", lambda family, provider, *rest, **keywords: 1_000_000)
    monkeypatch.setitem(augment.CASES, "simclr-32", {**SMALL, "B": 16})
    path = tmp_path / "result.json"
    options = ["--rounds", "3", "--budget", "0.01", "--allocator", "environment", "--json", str(path)]
    named = ["fastssl-chunked", "batched", "albumentations-workers"]
    assert bench.main(["augment", "--case", "simclr-32", "--providers", *named, *options]) == 0
    printed = capsys.readouterr().out
    assert "views/s" in printed and "gate: statistics of 96 views" in printed
    document = json.loads(path.read_text())
    rows = {row["provider"]: row for row in document["rows"]}
    if rows["albumentations-workers"]["status"] == "unavailable":
        del rows["albumentations-workers"]
    else:
        assert rows["albumentations-workers"]["peak_extra_bytes"] is None
    assert document["rate_unit"] == "views/s" and set(rows) <= set(named)
    for row in rows.values():
        assert row["rate"]["forward"] == pytest.approx(16 / row["times"]["forward"]["median_s"])
    assert f"**{report.rate_text(max(row['rate']['forward'] for row in rows.values()))}**" in report.markdown(document)
