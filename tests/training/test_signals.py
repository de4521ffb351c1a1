"""A signal lets the step end, saves and stops; what a run shows of its time."""

import os
import signal

import pytest

pytest.importorskip("lightning")
pytest.importorskip("timm")
import lightning as L
from training_runs import same_weights, train

from fastssl.methods.callbacks import duration, training_callbacks
from fastssl.methods.checkpoint import RunCheckpoint, Stopped


class Signal(L.Callback):
    """Sends signals to this process in the middle of a step or an evaluation."""

    def __init__(self, where, *numbers):
        self.where, self.numbers = where, numbers

    def on_before_optimizer_step(self, trainer, *_):
        if self.where == "step" and trainer.global_step == 1:
            self._send()

    def on_validation_batch_end(self, trainer, *_):
        if self.where == "validation":
            self._send()

    def _send(self):
        for number in self.numbers:
            os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("where", "step"), [("step", 2), ("validation", 4)])
def test_a_signal_lets_the_step_end_and_saves(where, step, number, tmp_path, capfd):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    whole, _, record = train(tmp_path / "whole", every=0)
    with pytest.raises(Stopped) as stop:
        train(tmp_path, every=0, callbacks=[Signal(where, number)])
    assert (stop.value.signal, stop.value.step, stop.value.checkpoint) == (number, step, tmp_path / "last.ckpt")
    assert ("Ctrl-C again stops at once" in capfd.readouterr().err) == (number == signal.SIGINT)
    assert {number: signal.getsignal(number) for number in before} == before
    part, _, rest = train(tmp_path, tmp_path / "last.ckpt", every=0)
    assert rest.ends_like(record) and same_weights(part, whole)


def test_a_second_ctrl_c_stops_at_once_and_writes_nothing(tmp_path):
    with pytest.raises(SystemExit):  # Lightning's answer
        train(tmp_path, every=0, callbacks=[Signal("step", signal.SIGINT, signal.SIGINT)])
    assert not (tmp_path / "last.ckpt").exists()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which Lightning leaves ignored


def test_checkpoints_by_steps_and_minutes(tmp_path):
    for options, steps in ((dict(every=2), [2, 4, 6, 8]), (dict(minutes=1e-9), range(1, 9)), (dict(minutes=0), [4, 8])):
        saved = []

        class Watched(RunCheckpoint):
            def on_save_checkpoint(self, trainer, *args):
                super().on_save_checkpoint(trainer, *args)
                saved.append(trainer.global_step)  # noqa: B023

        train(tmp_path, callbacks=[Watched(tmp_path / "x", **({"minutes": 0} | options))], every=0)
        assert sorted(set(saved)) == sorted(set(steps) | {4, 8})
    for name in ("every", "minutes"):
        with pytest.raises(ValueError, match=f"RunCheckpoint: {name} must be at least 0, got -1"):
            RunCheckpoint(tmp_path, **{name: -1})


def test_time_is_told_for_people():
    spans = [0, 41.6, 185, 7384, 3 * 86400 + 4 * 3600 + 5 * 60]
    assert [duration(span) for span in spans] == ["0:00", "0:42", "3:05", "2:03:04", "3 d 04:05"]


def test_lines_tell_speed_and_remaining_time(tmp_path, capsys):
    throughput, _, callbacks = training_callbacks(tmp_path)
    callbacks[1]._every = 0.0  # a line after each step
    train(tmp_path / "other", callbacks=callbacks[:-1], every=0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"epoch {epoch}/2{batch}"
        for epoch in (1, 2)
        for batch in (*(f", batch {number}/4" for number in range(1, 5)), "")
    ]
    assert all(f"{word} " in line for line in lines for word in ("loss", "images/s"))
    # Not known before the second step, nothing at the end.
    assert [" eta 0:0" in line or " eta 0:1" in line for line in lines] == [False, *[True] * 7, False, False]
    assert throughput.remaining == 0 and throughput.rate > 0
    assert "knn" in lines[4] and "knn" not in lines[5]
