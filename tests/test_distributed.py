"""Ranks that gather equal one process on the global batch: gloo processes, through DistributedDataParallel."""

from __future__ import annotations

import functools

import pytest
import torch
from harness import serving
from ranks import (
    Encoder,
    N,
    Objective,
    frozen_view_step,
    global_batch,
    ring_elsewhere,
    ring_in_bfloat16,
    ring_memory,
    ring_order,
    run_ranks,
    train_step,
    uneven_ring,
    uneven_step,
)

# Backend, loss, compiled; by the number of ranks.
STEPS = {
    2: [
        ("cpp", "NTXent", False),
        ("chunked", "NTXent learned temperature", False),
        ("cpp", "NTXent", True),
        ("cpp", "InfoNCE learned temperature", True),
        ("cpp", "InfoNCE of keys", False),
        ("cpp", "Clip learned temperature", True),
        ("cpp", "SigLip learned temperature", True),
        ("chunked", "SupCon", True),
        ("cpp", "DCLW", True),
        ("cpp", "NTXent learned temperature, ring", False),
        ("cpp", "InfoNCE learned temperature, ring", False),
        ("cpp", "InfoNCE of keys, ring", False),
        ("cpp", "Clip learned temperature, ring", False),
        ("cpp", "SigLip learned temperature, ring", False),
        ("cpp", "SupCon ring", False),
        ("cpp", "DCLW ring", False),
        ("cpp", "Bank", False),
        ("cpp", "DINO", True),
        ("chunked", "IBOT gathered", False),
        ("cpp", "IBOT", False),
        ("cpp", "SwaV", True),
        ("cpp", "KoLeo", False),
        ("cpp", "MSN", False),
    ],
    4: [
        ("cpp", "NTXent learned temperature", False),
        ("cpp", "InfoNCE of keys, learned temperature", False),
        ("cpp", "Clip learned temperature", False),
        ("chunked", "SigLip learned temperature", False),
        ("chunked", "NTXent learned temperature, ring", False),
        ("cpp", "InfoNCE learned temperature, ring", False),
        ("chunked", "Clip learned temperature, ring", False),
        ("cpp", "SigLip learned temperature, ring", False),
        ("cpp", "SupCon", False),
        ("chunked", "SupCon ring", False),
        ("cpp", "DCLW ring", False),
        ("cpp", "DINO", False),
        ("chunked", "DINO", False),
        ("cpp", "IBOT gathered", False),
        ("chunked", "SwaV", False),
        ("cpp", "SwaV", False),
        ("cpp", "KoLeo", False),
        ("chunked", "MSN", False),
    ],
}


@functools.cache
def results(world_size):
    """Every call's results by rank: all in the same processes, since starting them takes most of the time."""
    calls = [(train_step, *step) for step in STEPS[world_size]]
    if world_size == 2:
        calls += [(frozen_view_step,), (uneven_step,), (uneven_ring,), (ring_elsewhere,)]
    if world_size == 4:
        calls += [(ring_memory,), (ring_order,), (ring_in_bfloat16,)]
    return dict(zip(calls, run_ranks(world_size, calls), strict=True))


@pytest.mark.parametrize(
    ("world_size", "backend", "name", "compiled"), [(size, *step) for size, steps in STEPS.items() for step in steps]
)
def test_gradient_equals_one_process_on_the_global_batch(world_size, backend, name, compiled):
    with serving(backend, "cpu"):
        encoder, objective = Encoder(), Objective(name, gather=False)
        loss = objective(*encoder(*global_batch()))
        loss.backward()
    ranks = results(world_size)[train_step, backend, name, compiled]
    assert sum(rank_loss for rank_loss, *_ in ranks) / world_size == pytest.approx(loss.item(), rel=1e-5)
    for _, gradients, buffers in ranks:
        for parameter, value in encoder.named_parameters():
            actual = torch.tensor(gradients[parameter])
            torch.testing.assert_close(actual, value.grad, rtol=1e-4, atol=1e-6, msg=parameter)
        for buffer, value in objective.named_buffers():  # the centre: the global batch's, the same bits on every rank
            torch.testing.assert_close(torch.tensor(buffers[buffer]), value, rtol=1e-5, atol=1e-7, msg=buffer)
        assert buffers == ranks[0][2]
    assert encoder.layers[0].weight.grad.abs().max() > 1e-3
    assert encoder.temperature.grad.abs() > 1e-3 or "learned" not in name
    assert all(value.abs().max() > 1e-3 for value in objective.buffers())


@pytest.mark.parametrize("name", ["SwaV", "KoLeo", "MSN", "NTXent"])
def test_without_gathering_ranks_differ_from_one_process(name):
    """What the test above would not see if gathering did nothing."""
    encoder = Encoder()
    together = Objective(name, gather=False)(*encoder(*global_batch()))
    halves = zip(*(x.chunk(2) for x in global_batch()), strict=True)
    apart = sum(Objective(name, gather=False)(*encoder(*half)) for half in halves) / 2
    assert abs(together.item() - apart.item()) > 1e-3 * abs(together.item())


def test_a_frozen_view_leaves_the_others_gradient_as_it_is():
    assert results(2)[frozen_view_step,] == [True, True]


def test_uneven_batches_raise_on_every_rank():
    for message in results(2)[uneven_step,]:
        assert message == "nt_xent: z0 must have the same shape on every rank, got [(3, 8), (4, 8)] by rank"
    for message in results(2)[uneven_ring,]:
        assert message == "clip: image must have the same shape on every rank, got [(3, 8), (4, 8)] by rank"


def test_a_ring_holds_no_rows_of_all_ranks():
    for largest in results(4)[ring_memory,]:
        for (exchange, name), numbers in largest.items():
            # At most both views of this rank's rows, of 64 numbers each; gathering, at least one view of all ranks'.
            assert numbers <= 2 * N * 64 if exchange == "ring" else numbers >= 4 * N * 64, (exchange, name, numbers)


def test_a_ring_sends_before_it_computes():
    for rank, events in enumerate(results(4)[ring_order,]):
        turn = ["send", 0, "wait", "wait"]  # of what was sent, and of what came
        blocks = [event for event in events if isinstance(event, int)]
        assert blocks == [(rank - step) % 4 for step in range(4)]
        assert [0 if isinstance(event, int) else event for event in events] == turn * 3 + [0]


def test_a_ring_keeps_its_backend_and_leaves_out_what_nobody_wants():
    for used, same, second, message in results(2)[ring_elsewhere,]:
        assert used == ["chunked"] and same
        assert second != "no error"
        assert message == "clip: image must have the same shape on every rank, got [(3, 8), (4, 8)] by rank"


def test_a_ring_in_bfloat16():
    """A gradient is rounded once more for each block, from which it is added up in float32."""
    for errors in results(4)[ring_in_bfloat16,]:
        for name, (gathered, ring) in errors.items():
            assert 0 < ring <= 2 * gathered + torch.finfo(torch.bfloat16).eps, (name, gathered, ring)
