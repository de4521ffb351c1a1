"""The log of a run, resumed or killed in the middle of a line, and its panels."""

import numpy as np

from fastssl.report.curves import curves_figure, running_mean
from fastssl.report.logs import Log, Series, read_log


def test_cells_that_are_empty_are_no_values(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,knn,loss,step\n0,,5.5,4\n0,,4.5,9\n0,0.25,,9\n1,,nan,14\n")
    log = read_log(tmp_path)
    assert log.resumed == [] and list(log.series) == ["loss", "knn"]
    assert log.series["loss"].step.tolist() == [4, 9, 14]
    assert log.series["loss"].value[:2].tolist() == [5.5, 4.5] and np.isnan(log.series["loss"].value[2])
    assert log.series["knn"].step.tolist() == [9] and log.series["knn"].value.tolist() == [0.25]


def test_steps_that_a_resumed_run_makes_again_count_once(tmp_path):
    (tmp_path / "metrics-1.csv").write_text("step,loss\n0,9\n1,8\n2,7\n3,6\n")
    (tmp_path / "metrics-2.csv").write_text("loss,step,lr-AdamW\n70,2,0.1\n60,3,0.1\n50,4,0.1\n")
    (tmp_path / "metrics-10.csv").write_text("step,loss\n")  # killed at once
    (tmp_path / "metrics.csv").write_text("step,loss\n4,500\n5,4")  # killed in the middle of a line
    log = read_log(tmp_path)
    assert log.series["loss"].step.tolist() == [0, 1, 2, 3, 4, 5]
    assert log.series["loss"].value.tolist() == [9, 8, 70, 60, 500, 4]
    assert log.series["lr-AdamW"].step.tolist() == [2, 3]
    assert log.resumed == [2, 4]


def test_parts_are_joined_in_the_order_of_their_numbers(tmp_path):
    for number in range(1, 12):
        (tmp_path / f"metrics-{number}.csv").write_text(f"step,loss\n{number},{number}\n")
    assert read_log(tmp_path).series["loss"].step.tolist() == list(range(1, 12))


def test_a_damaged_log_is_read_as_far_as_it_goes(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(b"step,loss\n1,2,3,4\nx,5\n,6\n2\n3,\xff\n4,7\n")
    log = read_log(tmp_path)
    assert log.series["loss"].step.tolist() == [1, 4] and log.series["loss"].value.tolist() == [2, 7]
    assert read_log(tmp_path / "nowhere") == Log({}, [])


def test_each_quantity_has_its_panel(tmp_path):
    steps = np.arange(400)
    names = ("loss", "knn", "probe", "lr-AdamW", "lr-AdamW/pg1", "teacher_entropy", "something_new", "images/s")
    log = Log({name: Series(steps, np.linspace(1, 2, 400)) for name in names}, [100])
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
    figure = curves_figure(Log({"loss": Series(np.arange(4), np.array([1.0, np.nan, np.inf, 2.0]))}, []))
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "loss, 2 not finite"
    assert np.isnan(figure.axes[0].lines[0].get_ydata()).tolist() == [False, True, True, False]


def test_a_running_mean_is_centred_and_leaves_gaps_out():
    value = np.arange(300.0)
    value[10] = np.nan
    smooth = running_mean(Series(np.arange(300), value))  # over 6
    assert smooth.step[0] == 2 and smooth.value[0] == 2.5 and len(smooth.value) == 295
    assert smooth.value[10] == np.mean([11, 12, 13, 14, 15])
