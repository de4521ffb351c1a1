"""``fastssl bench training``: wrong losses are refused, a call is a whole step, its parts add up, reports show them."""

from __future__ import annotations

import argparse
import dataclasses
import time
from types import SimpleNamespace

import pytest
import torch
import yaml

pytest.importorskip("lightning")
pytest.importorskip("timm")
pytest.importorskip("lightly")

from fastssl import configs
from fastssl.benchmarks import cases, gpu, gpu_training, limits, report, runner, timing, training
from fastssl.benchmarks.gpu_family import Target

DINO, SIMCLR = ({**training.tiny_sizes(training.sizes(name)), "B": 4} for name in ("dino", "simclr"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(runner, "gc", SimpleNamespace(collect=lambda: 0))
    monkeypatch.setattr(timing, "SAMPLES_OF_SHORT_CALLS", 1)


def ceilings():
    made = object.__new__(limits.Limits)
    made.products = {name: {"torch.mm": 1e11} for name in cases.DTYPES}
    made.moves = {"torch.copy_": 1e10, limits.Limits.IN_PLACE: 1e10}
    return made


def rows_of(sizes, names, family=training.FAMILY):
    options = runner.Options(passes=("step",), rounds=1, budget=0.01, memory=False)
    rows, _ = runner.run_case(family, cases.Case.named(sizes, "float32", "cpu"), names, options, ceilings())
    return {row.provider: row for row in rows}


# --- What is trained ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["simclr", "dino"])
def test_the_first_cases_train_what_fit_trains(name):
    written = yaml.safe_load(configs.path_of(f"{name}_photos").read_text())
    model = training.create(training.sizes(name))
    ours = dict(model.hparams)
    for argument, value in written["model"].items():
        # What changes no time: schedules, and how strong DINO's views are.
        if argument not in ("final_weight_decay", "final_lr", *(("strength", "local_scale") if name == "dino" else ())):
            assert ours[argument] == value, argument
    data = written["data"]["init_args"]
    assert (training.CASES[name]["B"], training.CASES[name]["height"]) == (data["batch_size"], data["size"])
    assert [view.size for view in training.views_wanted(training.sizes(name))][:2] == [written["model"]["size"]] * 2


def test_the_command_line_chooses_cases_batches_and_dtypes():
    parser = argparse.ArgumentParser()
    training.add_arguments(parser)
    arguments = parser.parse_args(["--case", "dino", "--batch", "4", "8"], argparse.Namespace(dtype=["bfloat16"]))
    assert [case.sizes["B"] for case in training.cases(arguments, "cpu")] == [4, 8]
    for batch, says in (([0], "--batch must be above 0, got 0"), ([1], "--batch must be at least 2")):
        with pytest.raises(ValueError, match=says):
            training.cases(argparse.Namespace(case=["dino"], batch=batch, dtype=["float32"]), "cpu")


def test_products_are_counted_for_three_passes_and_the_teacher():
    sizes = {**DINO, "local": 1, "K": 64}
    case = cases.Case.named(sizes, "float32", "cpu")
    once = training.work(case, "step").flops
    assert training.work(cases.Case.named({**sizes, "B": 8}, "float32", "cpu"), "step").flops == 2 * once
    # 2 x 16 patches of the views that both see (4 passes), 4 of the small one (3): most products are the blocks'.
    tokens = 2 * 17 * 4 + 5 * 3
    assert once / 4 == pytest.approx(2 * 12 * 128**2 * tokens, rel=0.35)


# --- The gate -------------------------------------------------------------------------------------------------------


def changed(change):
    """fastssl with another loss."""

    def build(case):
        formed = training.PROVIDERS["fastssl"].function(case)
        step = formed.function
        right = step._loss
        step._loss = lambda model, views: change(right(model, views))
        return formed

    provider = dataclasses.replace(training.PROVIDERS["fastssl"], build=build)
    return dataclasses.replace(training.FAMILY, providers={**training.PROVIDERS, "changed": provider})


@pytest.mark.parametrize("sizes", [SIMCLR, DINO], ids=["simclr", "dino"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda loss: loss * 1, ""),
        (lambda loss: loss * 1.001, "loss is off by"),
        (lambda loss: loss.detach() + 1.001 * (loss - loss.detach()), "gradient of the head is off by"),
        (lambda loss: loss.detach() + 0 * loss, "gradient of the head is off by"),
    ],
    ids=["right", "loss", "gradient", "zeros"],
)
def test_a_wrong_loss_or_gradient_is_refused(sizes, change, says):
    row = rows_of(sizes, ["changed"], changed(change))["changed"]
    assert (row.status == "wrong") == bool(says) and row.reason.startswith(says), row.reason
    assert bool(row.timings) == (not says) and row.refuses_zeros


def test_a_view_that_is_left_out_is_refused():
    family = changed(lambda loss: loss)
    right = family.providers["changed"].build

    def build(case):
        formed = right(case)
        loss = formed.function._loss
        formed.function._loss = lambda model, views: loss(model, views[:-1])
        return formed

    family.providers["changed"] = dataclasses.replace(family.providers["changed"], build=build)
    assert rows_of(DINO, ["changed"], family)["changed"].reason.startswith("loss is off by")


# --- Steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fastssl", "eager", "lightly", "lightly-workers"])
def test_a_call_trains_student_and_teacher_with_fresh_views_and_leaves_no_gradients(name):
    case = cases.Case.named(DINO, "float32", "cpu")
    provider = training.PROVIDERS[name]
    formed, inputs = provider.function(case), training.inputs(case, 1)
    step = formed.function
    model, updates, seen = step._model, [], []
    before = {key: value.clone() for key, value in model.state_dict().items()}
    move, loss = model.after_optimizer_step, step._loss
    model.after_optimizer_step = lambda progress: (updates.append(progress), move(progress))
    step._loss = lambda model, views: (seen.append([tuple(view.shape) for view in views]), loss(model, views))[1]
    formed.restore(inputs)
    result = formed(*inputs)
    assert len(updates) == provider.batches
    assert seen == [[(4, 3, 32, 32)] * 2 + [(4, 3, 16, 16)] * 2] * provider.batches
    after = model.state_dict()
    for part in ("backbone.", "head.", "teacher.backbone.", "teacher.head.", "criterion."):
        assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith(part)), part
    assert not result[0].requires_grad and all(parameter.grad is None for parameter in model.parameters())
    # The comparison starts from the weights of the beginning, whatever was trained meanwhile.
    views = training.common_views(case, inputs)
    first = step.compared(views)
    formed(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, step.compared(views), strict=True))


def test_parts_add_up_to_a_step():
    case = cases.Case.named(DINO, "float32", "cpu")
    inputs, formed = training.inputs(case, 1), training.PROVIDERS["fastssl"].function(case)
    cases.ready(formed, inputs)
    formed(*inputs)
    training.parts(formed)  # forgets that call
    start = time.perf_counter()
    formed(*inputs)
    elapsed = time.perf_counter() - start
    assert 0.5 * elapsed < sum(training.parts(formed).values()) <= elapsed  # between them a few lines of Python


def test_every_provider_is_timed():
    rows = rows_of(DINO, ["fastssl", "torchvision-pil", "torchvision-pil-workers"])
    for row in rows.values():
        assert row.status == "ok", row.reason
        assert list(row.parts) == ["views", "forward and backward", "update"]
        assert row.rate["step"] == pytest.approx(4 / row.timings["step"].median)
    shown = rows["fastssl"].to_json()
    text = report.markdown(document(shown), shown=["time", "rate", "parts"])
    assert "| views + forward and backward + update | fastssl |" in text and "| training step | fastssl |" in text
    words = report.time_text(shown["parts_s"]["views"])
    assert f"| {words} + " in text
    shown.pop("parts_s")  # as in results of before
    assert "views" not in report.markdown(document(shown), shown=["parts", "time"])


def document(row):
    about = {"versions": {}, "commit": None, "machine": {}}
    fields = {"family": "training", "subject": "fastssl", "command": "", "environment": about, "limits": {}}
    return {**fields, "schema": report.SCHEMA, "work_model": "", "rate_unit": "images/s", "rows": [row]}


# --- On a GPU -------------------------------------------------------------------------------------------------------


def test_a_gpu_times_resnet50_and_vit_small_under_autocast():
    timed = gpu_training.cases(Target())
    assert [(case.dtype_name, case.device, case.sizes["size"]) for case in timed] == [("bfloat16", "cuda", 224)] * 2
    named = {name for case in timed for name in gpu_training.baselines(case)}
    assert named <= set(training.PROVIDERS) and {"compiled", "lightly-workers"} <= named
    (large, _) = timed
    assert gpu_training.compiled_sizes(large.sizes)["K"] == large.sizes["K"] == 65536


def test_the_gpu_benchmark_rehearses_a_step(tmp_path, capsys):
    setup = gpu.Setup(Target("cpu", "chunked", small=True), families=["training"], limits=ceilings())
    (case,) = gpu_training.cases(setup.target)
    found = gpu.time_case("training", setup.target, case, setup.options, setup.limits)
    assert found["problems"] == [] and [row["provider"] for row in found["rows"]] == ["fastssl-chunked", "eager"]
    assert all(set(row["times"]) == {"step"} for row in found["rows"])
    lines = gpu.table([gpu.Outcome("a step", True, "ok", [], found)])
    assert any(line.startswith("training") for line in lines)
