"""SigLIP's loss as a module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import functional
from .arguments import Exchange, check_exchange, check_world_size, default_group


class SigLipLoss(nn.Module):
    """Sigmoid loss of images and texts, in place of ``open_clip.SigLipLoss``: same arguments.

    See :func:`fastssl.functional.siglip`. Features come normalised, the scale exponentiated, as there. Across ranks
    each returns the sum over its own images and all ranks' texts, over the number of its own images.

    Args:
        cache_labels: accepted; there are no labels to cache.
        rank: accepted; the default process group says it.
        world_size: number of processes; above 1 the default group has to have as many.
        dist_impl: accepted; "bidir", "shift", "reduce" and "gather" are four ways to the same loss.
        exchange: "gather" or "ring": whether a process holds all rows at once or one process's after the other's.

    Raises:
        ValueError: for another dist_impl, or a world_size that is not that of the default group.
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
        exchange: Exchange = "gather",
    ) -> None:
        super().__init__()
        if dist_impl not in (None, "bidir", "shift", "reduce", "gather"):
            raise ValueError(f"SigLipLoss: dist_impl must be bidir, shift, reduce or gather, got {dist_impl!r}")
        check_world_size("SigLipLoss", world_size)
        self.world_size = world_size
        self.exchange = check_exchange("SigLipLoss", exchange)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float = 0.0,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Any]:
        """The loss, [].

        Args:
            image_features: unit rows [N, D].
            text_features: unit rows [N, D].
            logit_scale: multiplies the cosines; a tensor with one element may receive a gradient.
            logit_bias: is added to them; a tensor with one element may receive a gradient.
            output_dict: return {"contrastive_loss": loss}.
        """
        group = default_group(self.world_size > 1)
        loss = functional.siglip(
            image_features, text_features, logit_scale, logit_bias, normalize=False, group=group, exchange=self.exchange
        )  # fmt: skip
        return {"contrastive_loss": loss} if output_dict else loss
