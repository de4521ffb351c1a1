"""Teacher probabilities that are not computed behave like the tensor in whose place they stand."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from peers import DTYPES, logits

from fastssl.compat.targets import TeacherProbabilities, as_logits

T, B, K = 2, 3, 5


def targets(dtype=torch.float32):
    return TeacherProbabilities(logits(T, B, K, dtype=dtype), 0.5, logits(K, seed=1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_they_are_a_softmax(dtype):
    p = TeacherProbabilities(logits(B, K, dtype=dtype), 0.5, logits(K, seed=1)).probabilities()
    assert p.dtype == torch.promote_types(dtype, torch.float32)
    expected = torch.softmax(logits(B, K, dtype=dtype).to(p.dtype) / 0.5 - logits(K, seed=1), dim=-1)
    torch.testing.assert_close(p, expected)


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.view(-1, K),
        lambda t: t.view(T * B, 1, -1),
        lambda t: t.reshape(B, T, K),
        lambda t: t.flatten(0, 1),
        lambda t: t.unsqueeze(0),
        lambda t: t.unsqueeze(0).squeeze(0),
        lambda t: t[1],
        lambda t: t[:, 1:],
        lambda t: t[0, :2],
        lambda t: t[-1][0:1],
    ],
)
def test_views_of_whole_rows_stay_uncomputed(view):
    t = targets()
    seen = view(t)
    assert isinstance(seen, TeacherProbabilities)
    assert seen.logits.data_ptr() in range(t.logits.data_ptr(), t.logits.data_ptr() + t.logits.nbytes)
    torch.testing.assert_close(seen.probabilities(), view(t.probabilities()))
    assert seen.shape == view(t.probabilities()).shape


@pytest.mark.parametrize(
    "split",
    [lambda t: t.chunk(2), lambda t: t.split(1), lambda t: t.unbind(1), tuple, lambda t: t.view(-1, K).chunk(4)],
)
def test_parts_of_whole_rows_stay_uncomputed(split):
    t = targets()
    for seen, expected in zip(split(t), split(t.probabilities()), strict=True):
        assert isinstance(seen, TeacherProbabilities)
        torch.testing.assert_close(seen.probabilities(), expected)


@pytest.mark.parametrize(
    "use",
    [
        lambda t: t.sum(-1),
        lambda t: t.log(),
        lambda t: t.flatten(),
        lambda t: t.view(T, B * K),
        lambda t: t.transpose(1, 2),
        lambda t: t.unsqueeze(-1),
        lambda t: t[..., 0],
        lambda t: t[:, :, 1:],
        lambda t: t[None],
        lambda t: t[torch.tensor([1, 0])],
        lambda t: t.chunk(2, dim=-1)[1],
        lambda t: torch.cat([t, t]),
        lambda t: torch.sum(t * torch.ones(B, K), dim=-1),
        lambda t: torch.ones(B, K) * t,
        lambda t: torch.where(torch.ones(K, dtype=torch.bool), input=t, other=0.0),
    ],
)
def test_everything_else_acts_on_the_probabilities(use):
    t = targets()
    result = use(t)
    assert type(result) is torch.Tensor
    torch.testing.assert_close(result, use(t.probabilities()))


def test_shape_and_device_cost_nothing():
    t = targets()
    t.probabilities = None  # would raise if it were called
    assert t.shape == (T, B, K) and t.ndim == 3 and len(t) == T and t.size(1) == B and t.device.type == "cpu"


def test_copies_and_pickles():
    t = targets()
    for other in (copy.copy(t), copy.deepcopy(t), pickle.loads(pickle.dumps(t))):
        assert torch.equal(other.probabilities(), t.probabilities())
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = t.no_such_thing


def test_their_logits_serve_the_loss_without_a_copy():
    t = targets()
    arguments = as_logits(list(t), torch.float32)
    assert [x.data_ptr() for x in arguments["teacher"]] == [x.data_ptr() for x in t.logits]
    assert arguments["column_potential"] is t.column_potential and arguments["row_potential"] is None


def test_separate_assignments_keep_their_potentials():
    first, second = targets()[0], TeacherProbabilities(logits(B, K, seed=5), 0.5, logits(K, seed=6))
    arguments = as_logits([first, second], torch.float32)
    assert torch.equal(arguments["column_potential"], torch.stack((first.column_potential, second.column_potential)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_and_other_temperatures_become_logarithms(dtype):
    first = targets()[0]
    second = TeacherProbabilities(logits(B, K), 0.25, logits(K))
    third = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0]] * B, dtype=torch.float16)
    arguments = as_logits([first, second, third], dtype)
    assert arguments["teacher_temperature"] == 1.0 and arguments["column_potential"] is None
    wide = torch.promote_types(dtype, torch.float32)
    for x, expected in zip(arguments["teacher"], (first.probabilities(), second.probabilities(), third), strict=True):
        assert x.dtype == wide and x.isfinite().all()
        torch.testing.assert_close(x.exp(), expected.to(wide))
    assert arguments["row_potential"].shape == (3, B) and arguments["row_potential"].abs().max() == 0
