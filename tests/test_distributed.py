"""Ranks that gather equal one process on the global batch: gloo processes, through DistributedDataParallel."""

from __future__ import annotations

import pytest
import torch
from harness import serving
from ranks import Encoder, frozen_view_step, global_batch, loss_of, run_ranks, train_step, uneven_step


@pytest.mark.parametrize(
    ("world_size", "backend", "learn_temperature", "compiled"),
    [(2, "cpp", False, False), (4, "cpp", True, False), (2, "chunked", True, False), (2, "cpp", False, True)],
)
def test_gradient_equals_one_process_on_the_global_batch(world_size, backend, learn_temperature, compiled):
    with serving(backend, "cpu"):
        encoder = Encoder()
        loss = loss_of(*encoder(*global_batch()), learn_temperature)
        loss.backward()
    ranks = run_ranks(world_size, train_step, backend, learn_temperature, compiled)
    assert sum(rank_loss for rank_loss, _ in ranks) / world_size == pytest.approx(loss.item(), rel=1e-5)
    for _, gradients in ranks:
        for (name, parameter), gradient in zip(encoder.named_parameters(), gradients, strict=True):
            torch.testing.assert_close(torch.tensor(gradient), parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert encoder.temperature.grad.abs() > 1e-3 or not learn_temperature


def test_a_frozen_view_leaves_the_others_gradient_as_it_is():
    assert run_ranks(2, frozen_view_step) == [True, True]


def test_uneven_batches_raise_on_every_rank():
    for message in run_ranks(2, uneven_step):
        assert message == "nt_xent: z0 must have the same shape on every rank, got [(3, 8), (4, 8)] by rank"
