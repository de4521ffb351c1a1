"""InfoNCE: rows that each have one positive, against negatives of other images, a queue or a memory bank."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .. import backends, distributed, ops  # noqa: F401 - ops registers the operators
from ..ops import checks
from ..ops.precision import widened
from . import ring
from .contrastive import Reduction, inverse_temperature, reduced
from .precision import autocast
from .ring import Exchange


def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    index: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: dist.ProcessGroup | None = None,
    exchange: Exchange = "gather",
) -> Tensor:
    r"""Cross-entropy of finding each row's positive among the keys, without the matrix of similarities.

    Every row's loss is ``-s_ip + log sum_j exp(s_ij)``, s the cosines over the temperature and p its positive, which
    is one of the j: van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018, equation
    4. Where the positive stands, and what else is in the sum:

    * ``info_nce(query, key)``: row n of ``key`` is the positive of row n, the other rows are negatives (CPC, NNCLR's
      first term; MoCo v3 is ``2 tau (info_nce(q1, k2) + info_nce(q2, k1))``);
    * ``info_nce(query, key, negatives)``: row n of ``key`` is the positive of row n, the negatives are a queue and no
      other key (MoCo v1, v2: He et al. 2020, equation 1);
    * ``info_nce(query, bank, index=index)``: row ``index[n]`` of the bank is the positive of row n, the whole bank is
      in the sum (instance discrimination, PIRL: the full softmax that their noise-contrastive form approximates).

    Keys without a gradient (a momentum encoder's, a queue) cost one pass over them for loss and gradient.

    Args:
        query: [N, D], float32, bfloat16, float16 or float64, any strides.
        key: [N, D], or [M, D] with ``index``; same dtype and device.
        negatives: [K, D], same dtype and device; None: there are no others.
        index: int64 [N], rows of ``key``. Values are not checked: a row whose index is none has no positive, its
            logit counts as 0.
        temperature: above 0; or a tensor with one element, which then may receive a gradient and whose value is not
            checked.
        normalize: divide rows by their length, so that s is a cosine over the temperature.
        reduction: "mean" over the N rows, "sum", or "none": the losses [N].
        group: process group over which keys are gathered (without ``negatives`` and ``index``): rows of this rank
            against the keys of all ranks. The mean is over this rank's rows, and gradients averaged over ranks (as DDP
            does) equal those of one process on the global batch. Every rank must have the same N.
        exchange: how the ranks of ``group`` see each other's rows: "gather" holds all of them, "ring" passes them on
            block by block while it computes, so that memory does not grow with the ranks; ``torch.compile`` leaves it
            out of its graph.

    Returns:
        float32 (float64 for float64 input): [] or [N].

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Example:
        >>> loss = info_nce(q, k.detach(), queue, temperature=0.2)  # MoCo v2; enqueue k afterwards
    """
    name = "info_nce"
    checks.check_tensor(name, "query", query, ndim=2, layout="[N, D]")
    checks.check_tensor(name, "key", key, ndim=2, layout="[N, D]")
    query, key = autocast(query), autocast(key)
    for other, tensor in (("key", key), ("negatives", negatives)):
        if tensor is None:
            continue
        if other == "negatives":
            checks.check_tensor(name, other, tensor, ndim=2, layout="[K, D]")
            negatives = tensor = autocast(tensor)
        for attribute in ("dtype", "device"):
            checks.check_same(name, attribute, ("query", query), (other, tensor))
        if tensor.shape[1] != query.shape[1]:
            raise ValueError(
                f"{name}: query and {other} must have the same D, got shapes {tuple(query.shape)} and "
                f"{tuple(tensor.shape)}"
            )
    if index is None:
        checks.check_same(name, "shape", ("query", query), ("key", key))
    else:
        checks.check_keys(name, "index", index, length=query.shape[0], device=query.device)
    checks.check_choice(name, "reduction", reduction, ("mean", "sum", "none"))
    scale, logit_scale = inverse_temperature(name, temperature, query)
    checks.check_group(name, group)
    rings = ring.in_ring(name, exchange, group)
    alone = group is None or group.size() == 1
    if (index is not None) and negatives is not None:
        raise ValueError(f"{name}: index and negatives exclude each other, got both")
    if not alone and (index is not None or negatives is not None):
        raise ValueError(f"{name}: group gathers keys of the same batch, it must be None with index or negatives")

    columns, row_offset = key if negatives is None else negatives, 0
    if group is not None and not alone:
        if rings:
            log_sum, positive = ring.pairwise_logsumexp(
                query, key, logit_scale, caller=(name, "query"), group=group, scale=scale, normalize=normalize,
                positives="diagonal", exclude_self=False, exclude_positives=False,
            )  # fmt: skip
            return reduced(log_sum - positive, reduction)
        distributed.check_same_shape(name, "query", query, group)
        columns = distributed.gather_with_gradient(key, group)
        row_offset = key.shape[0] * group.rank()

    wants_gradient = torch.is_grad_enabled() and (
        query.requires_grad or (logit_scale is not None and logit_scale.requires_grad)
    )
    one_pass = (
        wants_gradient
        and reduction != "none"
        and not (key.requires_grad or columns.requires_grad)
        and query.dtype != torch.float16  # a gradient would be rounded before a loss scaler multiplies it
        and not torch.compiler.is_exporting()  # what will require a gradient then is not known now
    )
    if one_pass:
        weight = 1.0 if reduction == "sum" else 1.0 / query.shape[0]
        loss, *_ = torch.ops.fastssl.info_nce(
            query, columns, None if negatives is None else key, index, logit_scale, row_offset=row_offset,
            scale=scale, normalize=normalize, weight=weight, gradient=True, backend=backends.forced(),
        )  # fmt: skip
        return loss

    positives = "none" if negatives is not None else "diagonal" if index is None else "key"
    places = None if index is None else torch.arange(columns.shape[0], device=columns.device)
    log_sum, positive = torch.ops.fastssl.pairwise_logsumexp(
        query, columns, logit_scale, index, places, scale=scale, normalize=normalize, positives=positives,
        exclude_self=False, exclude_positives=False, row_offset=row_offset, col_offset=0, shared_by="", first_row=0,
        row_stride=1, backend=backends.forced(),
    )  # fmt: skip
    if negatives is not None:
        rows, own = (F.normalize(widened(x), dim=1) if normalize else widened(x) for x in (query, key))
        positive = (rows * own).sum(1) * (scale if logit_scale is None else scale * logit_scale)
        log_sum = torch.logaddexp(log_sum, positive)
    return reduced(log_sum - positive, reduction)
