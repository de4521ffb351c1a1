"""Two processes, and accumulated batches, equal one process on the global batch; they continue and stop together."""

import functools
import signal
import tempfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("timm")
from ranks import run_ranks
from training_runs import fail_share, make_share_method, resume_share, stop_share, train_share


@functools.cache
def results():
    """What two processes returned, by the call: all in the same processes, since starting them takes most time."""
    folder = Path(tempfile.mkdtemp())
    calls = {name: (train_share, folder / name, name, 16) for name in ("simclr", "dino", "supervised")}
    calls |= {f.__name__: (f, folder / f.__name__) for f in (resume_share, stop_share, fail_share)}
    found = dict(zip(calls, run_ranks(2, list(calls.values())), strict=True))
    for ranks in found.values():
        assert not any(isinstance(result, Exception) for result in ranks), ranks
    return found


def check_the_same_training(found, expected, name):
    """Weights moved by the same amounts, but for the rounding of sums in another order."""
    start = make_share_method(name).state_dict()
    moved = 0
    for key, value in expected.items():
        before = start[key].double()
        a, b = torch.tensor(found[key]).double(), torch.tensor(value).double()
        assert (a - b).norm() <= 1e-4 * (b - before).norm() + 1e-6 * b.norm(), key
        moved += bool((b - before).norm() > 1e-3 * b.norm())
    assert moved > 10


@pytest.mark.parametrize("name", ["simclr", "dino", "supervised"])
def test_two_processes_equal_one_on_the_global_batch(name, tmp_path):
    expected, accuracy = train_share(0, 1, tmp_path, name, 16)
    (first, first_accuracy), (second, second_accuracy) = results()[name]
    assert first == second and first_accuracy == second_accuracy
    check_the_same_training(first, expected, name)
    assert first_accuracy == pytest.approx(accuracy, abs=0.02)


def test_accumulated_batches_equal_large_ones(tmp_path):
    """For a mean over images. A contrastive loss sees fewer negatives in smaller batches."""
    expected, _ = train_share(0, 1, tmp_path, "supervised", 16, limit_train_batches=4)
    found, _ = train_share(0, 1, tmp_path, "supervised", 8, limit_train_batches=8, accumulate_grad_batches=2)
    check_the_same_training(found, expected, "supervised")


def test_two_processes_continue_bit_for_bit():
    assert results()["resume_share"] == [[True, True]] * 2


def test_a_signal_to_one_process_stops_all_at_the_same_step():
    assert results()["stop_share"] == [(signal.SIGTERM, 2, True)] * 2


def test_what_one_process_cannot_write_all_of_them_name():
    first, second = results()["fail_share"]
    assert first == second and "cannot write the checkpoint" in first
