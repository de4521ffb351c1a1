"""The log of a run, continued or killed in the middle of a line, and its panels."""

import numpy as np
import pytest

pytest.importorskip("lightning")
from fastssl.methods.logs import MetricsFile, make_loggers
from fastssl.report.curves import curves_figure, running_mean
from fastssl.report.logs import Series, read_log


def test_cells_that_are_empty_are_no_values(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,knn,loss,step\n0,,5.5,4\n0,,4.5,9\n0,0.25,,9\n1,,nan,14\n")
    log = read_log(tmp_path)
    assert list(log) == ["loss", "knn"]
    assert log["loss"].step.tolist() == [4, 9, 14]
    assert log["loss"].value[:2].tolist() == [5.5, 4.5] and np.isnan(log["loss"].value[2])
    assert log["knn"].step.tolist() == [9] and log["knn"].value.tolist() == [0.25]


def test_the_log_of_a_run_that_was_continued_is_one(tmp_path):
    for step in range(6):  # killed after the checkpoint of step 3, and continued from there
        MetricsFile(tmp_path).log_metrics({"loss": 10.0 - step}, step)
    make_loggers(tmp_path, tmp_path / "last.ckpt", 4)[0].log_metrics({"loss": 5.0, "lr-AdamW": 0.5}, 4)
    log = read_log(tmp_path)
    assert log["loss"].step.tolist() == [0, 1, 2, 3, 4] and log["loss"].value.tolist() == [10, 9, 8, 7, 5]
    assert log["lr-AdamW"].step.tolist() == [4]


def test_a_damaged_log_is_read_as_far_as_it_goes(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(b"step,loss\n1,2,3,4\nx,5\n,6\n2\n3,\xff\n4,7\n4,8\n5,9")
    log = read_log(tmp_path)
    assert log["loss"].step.tolist() == [1, 4, 5] and log["loss"].value.tolist() == [2, 8, 9]
    assert read_log(tmp_path / "nowhere") == {}


def test_each_quantity_has_its_panel(tmp_path):
    steps = np.arange(400)
    names = ("loss", "knn", "probe", "lr-AdamW", "lr-AdamW/pg1", "teacher_entropy", "something_new", "images/s")
    log = {name: Series(steps, np.linspace(1, 2, 400)) for name in names}
    figure = curves_figure(log)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]
    assert titles == [
        "loss", "accuracy on the test images", "entropy of the teacher", "learning rate", "throughput", "something_new",
    ]  # fmt: skip
    accuracy = figure.axes[1]
    assert accuracy.get_ylabel() == "%" and accuracy.lines[0].get_ydata().max() == 200
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["k-NN", "online linear probe"]
    figure.savefig(tmp_path / "curves.png")


def test_numbers_that_are_not_finite_are_counted_and_not_drawn():
    figure = curves_figure({"loss": Series(np.arange(4), np.array([1.0, np.nan, np.inf, 2.0]))})
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "loss, 2 not finite"
    assert np.isnan(figure.axes[0].lines[0].get_ydata()).tolist() == [False, True, True, False]


def test_a_running_mean_is_centred_and_leaves_gaps_out():
    value = np.arange(300.0)
    value[10] = np.nan
    smooth = running_mean(Series(np.arange(300), value))  # over 6
    assert smooth.step[0] == 2 and smooth.value[0] == 2.5 and len(smooth.value) == 295
    assert smooth.value[10] == np.mean([11, 12, 13, 14, 15])
