"""CLIP's loss as a module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import functional
from .arguments import Exchange, check_exchange, check_world_size, default_group


class ClipLoss(nn.Module):
    """Symmetric cross-entropy of images and texts, in place of ``open_clip.ClipLoss``: same arguments.

    See :func:`fastssl.functional.clip`. Features come normalised, the scale exponentiated, as there. Across ranks each
    returns the mean over its own rows, and gradients averaged by DDP equal those of one process on the global batch,
    whatever ``local_loss`` and ``gather_with_grad`` say: open_clip's are that with both True.

    Args:
        local_loss: accepted; without it open_clip's ranks all return the loss of the global batch.
        gather_with_grad: accepted; without it open_clip's gradients lack what other ranks' rows contribute.
        cache_labels: accepted; there are no labels to cache.
        rank: accepted; the default process group says it.
        world_size: number of processes; above 1 the default group has to have as many.
        use_horovod: must be False.
        exchange: "gather" or "ring": whether a process holds all rows at once or one process's after the other's.

    Raises:
        ValueError: for Horovod, or a world_size that is not that of the default group.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        exchange: Exchange = "gather",
    ) -> None:
        super().__init__()
        if use_horovod:
            raise ValueError("ClipLoss: use_horovod must be False, torch.distributed is what gathers")
        check_world_size("ClipLoss", world_size)
        self.world_size = world_size
        self.exchange = check_exchange("ClipLoss", exchange)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Any]:
        """The loss, [].

        Args:
            image_features: unit rows [N, D].
            text_features: unit rows [N, D].
            logit_scale: multiplies the cosines; a tensor with one element may receive a gradient.
            logit_bias: added to all logits, which changes no softmax; its gradient is 0.
            output_dict: return {"contrastive_loss": loss}.
        """
        group = default_group(self.world_size > 1)
        loss = functional.clip(
            image_features, text_features, logit_scale, normalize=False, group=group, exchange=self.exchange
        )
        if isinstance(logit_bias, Tensor):
            loss = loss + 0.0 * logit_bias.sum()  # DDP wants a gradient for every parameter
        return {"contrastive_loss": loss} if output_dict else loss
