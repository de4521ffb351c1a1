"""The memory of large outputs: given out again when, and only when, nobody uses it."""

from __future__ import annotations

import threading

import pytest
import torch
from harness import poisoned_outputs, serving

import fastssl
from fastssl import functional
from fastssl.ops import outputs

LARGE = torch.empty(1 << 21)  # 8 MB


def empty_like(x: torch.Tensor) -> torch.Tensor:
    return outputs.empty(x.shape, x.dtype)


@pytest.fixture(autouse=True)
def extension():
    with serving("cpp", "cpu"):
        fastssl.release_workspaces()
        yield
        fastssl.release_workspaces()


def test_the_memory_of_a_dead_output_is_given_out_again():
    first = empty_like(LARGE)
    address = first.data_ptr()
    del first
    again = empty_like(LARGE.view(2, -1))
    assert again.data_ptr() == address and again.shape == (2, 1 << 20) and again.is_contiguous()
    del again
    assert empty_like(LARGE.bfloat16().repeat(2)).data_ptr() == address, "of any dtype"


@pytest.mark.parametrize(
    "still_used",
    [
        lambda x: x,
        lambda x: x[5:7],
        lambda x: x.detach(),
        lambda x: x.numpy(),
        lambda x: torch.utils.dlpack.to_dlpack(x),
        lambda x: (x.requires_grad_() * x).sum(),  # saved for a backward pass
        lambda x: x.untyped_storage(),
    ],
    ids=["itself", "view", "detached", "numpy", "dlpack", "saved", "storage"],
)
def test_memory_in_use_is_not_given_out(still_used):
    first = empty_like(LARGE)
    address, user = first.data_ptr(), still_used(first)
    del first
    assert empty_like(LARGE).data_ptr() != address
    del user
    assert address in (empty_like(LARGE).data_ptr(), empty_like(LARGE).data_ptr())


def test_memory_that_processes_share_is_not_given_out():
    first = empty_like(LARGE)
    first.share_memory_()
    shared = first.data_ptr()
    del first
    assert empty_like(LARGE).data_ptr() != shared


def test_small_and_filled_outputs_are_ordinary_tensors():
    empty_like(torch.empty(100))
    with poisoned_outputs():
        assert empty_like(LARGE).isnan().all()
    assert not outputs._kept


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(outputs, "KEPT", 3 * LARGE.nbytes)
    for n in range(6):
        empty_like(torch.empty(LARGE.numel() + n))
        assert sum(memory.nbytes for memory in outputs._kept.values()) <= outputs.KEPT
    assert len(outputs._kept) == 2
    empty_like(torch.empty(4 * LARGE.numel()))
    assert not outputs._kept


def test_releasing_forgets_everything_and_harms_no_tensor():
    used, free = empty_like(LARGE).fill_(3), empty_like(LARGE)
    del free
    assert outputs.release() == LARGE.nbytes and not outputs._kept
    assert (used == 3).all()


def test_no_two_threads_get_the_same_memory():
    start, taken = threading.Barrier(8), []

    def take():
        start.wait()
        taken.append([empty_like(LARGE) for _ in range(4)])

    for _ in range(3):
        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        addresses = [tensor.data_ptr() for tensors in taken for tensor in tensors]
        assert len(set(addresses)) == 32
        taken.clear()


def test_gradients_of_two_steps_do_not_disturb_each_other():
    leaf, teacher = torch.randn(4, 64, 1 << 13), torch.randn(2, 64, 1 << 13)
    gradients, copies = [], []
    for _ in range(3):
        leaf = leaf.detach().requires_grad_()
        functional.soft_target_cross_entropy(leaf, teacher).backward()
        gradients.append(leaf.grad)
        copies.append(leaf.grad.clone())
        leaf = leaf + 1e3 * leaf.grad
    assert all(torch.equal(a, b) for a, b in zip(gradients, copies, strict=True))
    assert not torch.equal(copies[0], copies[1])
