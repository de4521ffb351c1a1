"""The losses of masked autoencoders on pixels: MAE's and SimMIM's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .. import functional
from ..functional.reconstruction import Error
from ..ops import checks


class MAELoss(nn.Module):
    """Mean squared error of the removed patches, the patches normalised each by itself: ``forward_loss`` of MAE's code.

    He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022, section 3. The image is read where it lies, and
    of it the removed patches only: see :func:`fastssl.functional.patch_loss`.

    Args:
        patch_size: divides the image's height and width.
        norm_pix_loss: subtract each patch's mean and divide by the root of its unbiased variance + 1e-6.
        mean: per channel, subtracted from the image first.
        std: per channel; the image is divided by it.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Example:
        >>> criterion = MAELoss(patch_size=16)
        >>> loss = criterion(images, decoder(tokens), mask)
    """

    def __init__(
        self,
        patch_size: int = 16,
        norm_pix_loss: bool = True,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.patch_size = checks.check_count("MAELoss", "patch_size", patch_size, minimum=1)
        self.norm_pix_loss = bool(norm_pix_loss)
        self.mean, self.std = mean, std

    def forward(self, imgs: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        """The mean over removed patches.

        Args:
            imgs: [B, C, H, W], 1 to 4 channels, any strides; uint8 is divided by 255. A constant.
            pred: [B, L, patch_size^2 C] in the order (y, x, C), or [B, 1 + L, ...] with a class token.
            mask: [B, L], 1 or True where a patch was removed.

        Returns:
            The loss, [], float32 (float64 for float64 predictions); NaN where no patch was removed.
        """
        return functional.patch_loss(
            imgs,
            pred,
            mask,
            patch_size=self.patch_size,
            normalize=self.norm_pix_loss,
            mean=self.mean,
            std=self.std,
        )


class SimMIMLoss(nn.Module):
    """Mean absolute error of the pixels of the masked patches.

    Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling", 2022, section 3.4. As in its code 1e-5 is added
    to the number of masked pixels, so that the loss is 0 without any.

    Args:
        patch_size: pixels along a side of what a row of the predictions stands for: ``encoder_stride`` in its code.
        error: "absolute", "squared" or "smooth_l1", which section 4.1 of the paper compares.
        beta: of smooth L1.
        mean: per channel, subtracted from the image first.
        std: per channel; the image is divided by it.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """

    def __init__(
        self,
        patch_size: int = 16,
        error: Error = "absolute",
        *,
        beta: float = 1.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.patch_size = checks.check_count("SimMIMLoss", "patch_size", patch_size, minimum=1)
        checks.check_choice("SimMIMLoss", "error", error, ("squared", "absolute", "smooth_l1"))
        self.error = error
        self.beta = checks.check_positive_number("SimMIMLoss", "beta", beta)
        self.mean, self.std = mean, std

    def forward(self, imgs: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        """The mean over masked pixels and channels.

        Args:
            imgs: [B, C, H, W], 1 to 4 channels, any strides; uint8 is divided by 255. A constant.
            pred: [B, L, C patch_size^2], a row per patch in the order (C, y, x): what comes out of a linear head, or of
                SimMIM's 1x1 convolution before its ``PixelShuffle`` as ``x.flatten(2).transpose(1, 2)``.
            mask: [B, L] or [B, H / patch_size, W / patch_size], 1 or True where a patch was masked.

        Returns:
            The loss, [], float32 (float64 for float64 predictions).
        """
        return functional.patch_loss(
            imgs,
            pred,
            mask,
            patch_size=self.patch_size,
            error=self.error,
            beta=self.beta,
            channels_first=True,
            mean=self.mean,
            std=self.std,
            eps=1e-5 / self.patch_size**2,
        )
