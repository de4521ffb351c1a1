"""The soft-target family's part of ``fastssl bench``, with Sinkhorn-Knopp and KoLeo: truths, baselines, in place."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from fastssl.benchmarks import cases, koleo, limits, report, runner, sinkhorn_knopp, soft_target, timing, verify
from fastssl.benchmarks import soft_target_baselines as baselines
from fastssl.cli import bench

CASE = cases.Case({"K": 50, "B": 6, "S": 5, "T": 2}, torch.float32, "cpu")


@pytest.fixture(autouse=True)
def no_garbage_collection(monkeypatch):
    """It frees a large baseline's memory, and takes longer than all else that is small."""
    monkeypatch.setattr(runner, "gc", SimpleNamespace(collect=lambda: 0))


def wide(inputs):
    """The same numbers in float64."""
    return tuple(tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in inputs)


def assert_true(expected, results):
    for want, result in zip(expected, results, strict=True):
        torch.testing.assert_close(want.value, result, rtol=1e-9, atol=1e-13)
        assert (want.terms >= want.value.abs() * (1 - 1e-5)).all()


# --- Truths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1 << 21, 250])  # all images at once, and two at a time
@pytest.mark.parametrize(("s", "t"), [(5, 2), (2, 5), (4, 1)])
def test_the_truth_is_the_published_formula_in_float64(s, t, block, monkeypatch):
    monkeypatch.setitem(soft_target.TRUTH_BLOCK, "cpu", block)
    case = dataclasses.replace(CASE, sizes={**CASE.sizes, "S": s, "T": t})
    inputs = soft_target.inputs(case, seed=1)
    assert_true(soft_target.truth(case, inputs, 0), cases.outputs(baselines.eager, wide(inputs)))


def test_the_truth_of_sinkhorn_knopp_is_the_published_loop_in_float64():
    case = cases.Case({"K": 20, "B": 8, "temperature": 0.05}, torch.float32, "cpu")
    inputs = sinkhorn_knopp.inputs(case, seed=1)
    q = (inputs[0].double() / 0.05).exp()
    for _ in range(3):
        q = q / q.sum(0)
        q = q / q.sum(1, keepdim=True)
    expected = sinkhorn_knopp.truth(case, inputs, 0)
    torch.testing.assert_close(expected[0].value, q, rtol=1e-10, atol=0)


@pytest.mark.parametrize("block", [1 << 22, 40])
def test_the_truth_of_koleo_is_autograd_in_float64(block, monkeypatch):
    monkeypatch.setattr(koleo, "TRUTH_BLOCK", block)
    case = cases.Case({"N": 13, "D": 6}, torch.float32, "cpu")
    inputs = koleo.inputs(case, seed=1)

    def formula(x):
        unit = F.normalize(x, dim=1)
        nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1)
        return -((unit - unit[nearest] + koleo.EPS).norm(dim=1) + koleo.EPS).log().mean()

    assert_true(koleo.truth(case, inputs, 0), cases.outputs(formula, wide(inputs)))


@pytest.fixture
def sampled(monkeypatch):
    """A problem of which only some gradient rows are compared, what is compared, and right results."""
    monkeypatch.setattr(soft_target, "EVERY_ELEMENT", 100)
    monkeypatch.setattr(soft_target, "SAMPLED_ROWS", 4)
    inputs = soft_target.inputs(CASE, seed=1)
    return inputs, soft_target.truth(CASE, inputs, 7), cases.outputs(baselines.eager, inputs)


def test_sampled_rows_hold_the_same_truth_as_all_rows(sampled, monkeypatch):
    inputs, some, right = sampled
    monkeypatch.setattr(soft_target, "EVERY_ELEMENT", 1 << 20)
    every = soft_target.truth(CASE, inputs, 7)
    assert every[2].rows is None and len(some[2].rows[0]) < 5 * 6 and some[2].shape == every[2].value.shape
    torch.testing.assert_close(some[2].value, every[2].compared(every[2].value)[some[2].rows], rtol=1e-12, atol=0)
    torch.testing.assert_close(some[2].terms, every[2].terms[some[2].rows], rtol=1e-5, atol=0)
    assert not any(check.reason for check in verify.check(right, some, [0.0] * 3, CASE))


def test_sampled_rows_hold_the_ends_of_every_view_and_leave_no_gap(monkeypatch):
    monkeypatch.setattr(soft_target, "EVERY_ELEMENT", 1)
    s, b = 10, 64
    views, images = soft_target.compared_rows(s, b, 5, seed=3)
    rows = views * b + images
    assert rows.diff().min() > 0 and rows.diff().max() <= 2 * (s * b / soft_target.SAMPLED_ROWS + 1)
    for image in (0, b - 1):
        assert views[images == image].tolist() == list(range(s))
    assert not torch.equal(images, soft_target.compared_rows(s, b, 5, seed=4)[1])


# --- Wrong results --------------------------------------------------------------------------------------------------


def same_views_too(student, teacher, center):
    return baselines.eager(student, teacher.flip(0), center)  # skips (0, 1) and (1, 0) instead


def without_center(student, teacher, center):
    loss, _ = baselines.eager(student, teacher, torch.zeros_like(center))
    return loss, baselines.eager(student, teacher, center)[1]


def center_as_it_was(student, teacher, center):
    return baselines.eager(student, teacher, center)[0], center


def center_before_the_softmax(student, teacher, center):
    moved = baselines.eager(student, teacher, center)[1]
    return baselines.eager(student, teacher, moved)[0], moved


def last_image_left_out(student, teacher, center):
    loss, moved = baselines.eager(student, teacher, center)
    kept = torch.cat([student[:, :-1], student[:, -1:].detach()], dim=1)
    return baselines.eager(kept, teacher, center)[0] - 0 * loss.detach(), moved


def first_view_left_out(student, teacher, center):
    return baselines.eager(torch.cat([student[:1].detach(), student[1:]]), teacher, center)


@pytest.mark.parametrize("every_row", [True, False])
@pytest.mark.parametrize(
    ("function", "says"),
    [
        (same_views_too, "gradient of the student's logits is off by"),
        (without_center, "gradient of the student's logits is off by"),
        (center_as_it_was, "next centre is off by"),
        (center_before_the_softmax, "gradient of the student's logits is off by"),
        (last_image_left_out, "gradient of the student's logits is off by"),
        (first_view_left_out, "gradient of the student's logits is off by"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_wrong_results_are_refused(function, says, every_row, dtype, request):
    if not every_row:
        request.getfixturevalue("sampled")
    case = dataclasses.replace(CASE, dtype=dtype)
    provider = cases.Provider(lambda case: function)
    family = dataclasses.replace(soft_target.FAMILY, providers={**soft_target.PROVIDERS, "wrong": provider})
    sets = [soft_target.inputs(case, seed) for seed in (1, 2)]
    expected = soft_target.truth(case, sets[-1], 0)
    errors = runner.errors_of_baseline(family, case, sets, expected)
    row = runner.Row(case, "wrong")
    assert runner.prepare(family, row, sets, expected, errors, runner.Options()) is None
    assert row.status == "wrong" and says in row.reason


def test_a_careless_loss_is_excused_up_to_its_slack_and_never_silently():
    def careless(factor):
        def function(student, teacher, center):
            loss, moved = baselines.eager(student, teacher, center)
            return loss + factor * loss.detach(), moved

        return lambda case: function

    def biased_gradient(student, teacher, center):
        loss, moved = baselines.eager(student, teacher, center)
        return loss + 1e-3 * (loss - loss.detach()), moved

    providers = {
        "within": cases.Provider(careless(1e-5), slack=1000.0),
        "beyond": cases.Provider(careless(1e-2), slack=1000.0),
        "strict": cases.Provider(careless(1e-5)),
        "gradient": cases.Provider(lambda case: biased_gradient, slack=1000.0),
    }
    family = dataclasses.replace(soft_target.FAMILY, providers={**soft_target.PROVIDERS, **providers})
    sets = [soft_target.inputs(CASE, seed) for seed in (1, 2)]
    expected = soft_target.truth(CASE, sets[-1], 0)
    errors = runner.errors_of_baseline(family, CASE, sets, expected)
    rows = {name: runner.Row(CASE, name) for name in providers}
    for row in rows.values():
        runner.prepare(family, row, sets, expected, errors, runner.Options())
    assert [row.status for row in rows.values()] == ["ok", "wrong", "wrong", "wrong"]
    assert "loss is off by" in rows["within"].note and "gradient" in rows["gradient"].reason


# --- Baselines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("s", "t"), [(5, 2), (2, 3)])
def test_the_chunked_baseline_is_right_across_block_borders(s, t, dtype, monkeypatch):
    monkeypatch.setitem(baselines.BLOCK_BYTES, "cpu", 4 * (s + t) * 50 * 4)  # 4 and 2 of 6 images
    assert baselines.block_images(s + t, 50, "cpu") == 4
    assert_right("chunked", dataclasses.replace(CASE, sizes={**CASE.sizes, "S": s, "T": t}, dtype=dtype))


def test_the_chunked_baseline_is_right_when_it_is_compiled(monkeypatch):
    monkeypatch.setitem(baselines.BLOCK_BYTES, "cpu", 3 * 7 * 50 * 4)
    assert soft_target.PROVIDERS["chunked-compiled"].compiles
    assert_right("chunked-compiled", dataclasses.replace(CASE, dtype=torch.bfloat16))


def assert_right(name, case):
    """The gate passes this provider, and would not pass everything."""
    inputs = soft_target.inputs(case, seed=2)
    expected = soft_target.truth(case, inputs, 0)
    eager = verify.errors(cases.outputs(soft_target.PROVIDERS["eager"].build(case), inputs), expected)
    assert verify.would_refuse_zeros(expected, eager, case)
    for check in verify.check(cases.outputs(soft_target.PROVIDERS[name].build(case), inputs), expected, eager, case):
        assert not check.reason, check


@pytest.mark.parametrize("name", ["chunked", "lightly"])
def test_a_scaled_loss_has_a_scaled_gradient(name):
    if name == "lightly":
        pytest.importorskip("lightly")
    student, teacher, center = soft_target.inputs(CASE, seed=2)
    function = soft_target.PROVIDERS[name].build(CASE)
    once, thrice = (
        torch.autograd.grad(factor * function(student, teacher, center)[0], student)[0] for factor in (1, 3)
    )
    torch.testing.assert_close(thrice, 3 * once)


def test_a_stack_is_taken_apart_without_copies():
    stack = torch.randn(3, 4, 5, requires_grad=True)
    views = baselines.Views.apply(stack)
    assert [view.data_ptr() for view in views] == [view.data_ptr() for view in stack]
    gradients = torch.randn(7, 4, 5)
    whole = torch.autograd.grad(views, stack, tuple(gradients[2:5]), retain_graph=True)[0]
    assert whole.data_ptr() == gradients[2].data_ptr() and torch.equal(whole, gradients[2:5])
    for order in ([4, 3, 2], [0, 2, 4], [1, 1, 1]):
        apart = tuple(gradients[number] for number in order)
        assert torch.equal(torch.autograd.grad(views, stack, apart, retain_graph=True)[0], torch.stack(apart))


# --- Inputs that are written over -----------------------------------------------------------------------------------


class WritesOver(torch.autograd.Function):
    """The sum of squares, whose gradient takes x's place."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach()
        return x.square().sum()

    @staticmethod
    def backward(ctx, d_loss):
        return ctx.x.mul_(2 * d_loss)


def test_a_function_that_writes_over_its_inputs_gets_them_anew_and_untimed():
    sets = [(torch.randn(4, requires_grad=True),) for _ in range(2)]
    before = [x.detach().clone() for (x,) in sets]
    seen = []

    def watched(x):
        assert not x.is_leaf or not torch.is_grad_enabled()
        seen.append(x.detach().clone())
        return WritesOver.apply(x)

    function = cases.Provider(lambda case: watched, overwrites_inputs=True).function(CASE)
    for number in (0, 1, 1, 0):
        loss, gradient = cases.outputs(function, sets[number])
        torch.testing.assert_close(loss, before[number].square().sum())
        assert torch.equal(gradient, 2 * before[number])
    seen.clear()
    for which in cases.PASSES:
        task = runner.task(function, sets, which)
        for call in range(4):
            task.prepare(call)
            task.run(call)
    assert len(seen) == 12 and all(torch.equal(x, before[call % 2]) for call, x in enumerate(seen))
    assert all(torch.equal(x, old) for (x,), old in zip(sets, before, strict=True))


def test_the_gradient_of_what_is_written_over_is_not_copied():
    (x,) = inputs = (torch.randn(4, requires_grad=True),)
    written = []

    def watched(x):
        written.append(x.data_ptr())
        return WritesOver.apply(x)

    function = cases.Overwriting(watched)
    cases.ready(function, inputs)
    cases.step(function, inputs)
    assert x.grad.data_ptr() == written[0] != x.data_ptr()


# --- Work and limits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "rows"), [("cpu", (12, 10, 22)), ("cuda", (12, 22, 34))])
def test_the_work_is_the_rows_that_go_through_memory(device, rows):
    case = cases.Case({"K": 7, "B": 3, "S": 10, "T": 2}, torch.bfloat16, device)
    assert [soft_target.work(case, which) for which in cases.PASSES] == [cases.Work(0, n * 3 * 7 * 2) for n in rows]


def ceilings():
    found = object.__new__(limits.Limits)
    found.products = {"float32": {"torch.mm": 1e12}, "bfloat16": {"torch.mm": 1e12}}
    found.moves = {"torch.copy_": 2e9, "memcpy": 4e9, limits.Limits.IN_PLACE: 8e9}
    return found


def test_a_copy_is_the_limit_except_for_who_writes_in_place():
    found = ceilings()
    assert found.copy == 4e9
    assert found.share(cases.Work(0, 4e9), 2.0, "float32") == pytest.approx(0.5)
    assert found.share(cases.Work(0, 4e9), 2.0, "float32", in_place=True) == pytest.approx(0.25)
    assert found.to_json()["copy_bytes_per_s"] == 4e9
    text = report.limits_text(found.to_json())
    assert "2.0 GB/s torch.copy_, 4.0 GB/s memcpy, 8.0 GB/s in place" in text


@pytest.mark.parametrize("threads", [1, 3])
def test_every_way_to_copy_copies(threads, monkeypatch):
    source, target = torch.arange(1000), torch.zeros(1000, dtype=torch.long)
    with limits.ThreadPoolExecutor(threads) as pool:
        limits._memcpy(target, source, pool, threads)
    assert torch.equal(source, target)


# --- The command ----------------------------------------------------------------------------------------------------

FEW = "--device cpu --dtype bfloat16 --rounds 1 --budget 0.001 --no-memory --allocator environment"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(timing, "SAMPLES_OF_SHORT_CALLS", 1)
    monkeypatch.setattr(limits.Limits, "_measure", lambda self, *arguments: vars(self).update(vars(ceilings())))


def test_the_command_measures_soft_targets_in_place_too(quick, tmp_path, capsys):
    path = tmp_path / "result.json"
    command = "soft_target --k 24 40 --batch 3 --views 4 --providers fastssl fastssl-inplace eager"
    assert bench.main(f"{command} {FEW} --json {path}".split()) == 0
    printed = capsys.readouterr().out
    assert "K=24 B=3 S=4 T=2 bfloat16 cpu" in printed and "memory's bandwidth" in printed
    document = json.loads(path.read_text())
    assert [row["status"] for row in document["rows"]] == ["ok"] * 6
    for row in document["rows"]:
        assert set(row["times"]) == set(cases.PASSES)
        rate = 8e9 if row["provider"] == "fastssl-inplace" else 4e9
        floor = 3 * (4 + 2 + 4) * row["sizes"]["K"] * 2 / rate
        assert row["share_of_limit"]["both"] == pytest.approx(floor / row["times"]["both"]["median_s"])
    text = report.markdown(document, passes=["both"])
    assert "| bfloat16, K = 24 |" in text and "| bfloat16, K = 40 |" in text


def test_an_operation_without_a_gradient_has_a_forward_pass_only(quick, tmp_path, capsys):
    path = tmp_path / "result.json"
    command = f"sinkhorn_knopp --k 24 --batch 3 {FEW} --providers fastssl eager"
    assert bench.main(f"{command} --json {path}".split()) == 0
    for row in json.loads(path.read_text())["rows"]:
        assert row["status"] == "ok" and set(row["times"]) == {"forward"}
    assert bench.main(f"{command} --pass both".split()) == bench.USAGE
    assert "invalid choice: 'both'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("soft_target --k 0", "--k must be above 0, got 0"),
        ("soft_target --views 1 --teachers 1", "must leave a pair of different views, got 1 and 1"),
        ("sinkhorn_knopp --temperature -1", "--temperature must be above 0, got -1"),
        ("koleo --n 1", "--n must be at least 2, or there is no neighbour, got 1"),
    ],
)
def test_a_wrong_command_line_is_named(command, says, capsys):
    assert bench.main(command.split()) == bench.USAGE
    assert says in capsys.readouterr().err
