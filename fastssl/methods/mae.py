"""MAE: He, Chen, Xie, Li, Dollar, Girshick, "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022
(arXiv 2111.06377), section 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl import functional
from fastssl.augment import MAETransform
from fastssl.data.base import Batch
from fastssl.functional.masking import Masks
from fastssl.losses import MAELoss
from fastssl.methods.base import SelfSupervised, Step
from fastssl.models.masked import MAEDecoder, initialize, patch_grid, sincos_positions

_PREFIX = "decoder_"  # of the decoder's names in the checkpoints of MAE's code, but the mask token's


class MAE(SelfSupervised):
    """An encoder sees a quarter of the patches, a small decoder predicts the pixels of the others.

    The defaults of the training are the paper's (appendix A.1, table 8), for 800 to 1600 epochs of ImageNet with images
    in batches of 4096.

    Args:
        mask_ratio: share of patches that are removed.
        norm_pix_loss: whether each patch is normalised before it is predicted.
        decoder_dim: width of the decoder.
        decoder_depth: its blocks.
        decoder_heads: heads of its attention.
        min_scale: smallest area of the crop as a share of the image; a flip is all else.
        lr: for `lr_batch_size` images per step.
        lr_batch_size: as in the base class.
        betas: of AdamW.
        weight_decay: as in the base class.
        warmup_epochs: as in the base class.
        backbone: a vision transformer of timm with a class token; its positions become fixed sines and cosines.
        **kwargs: of :class:`fastssl.methods.base.SelfSupervised`.

    Raises:
        ValueError: if a number is out of range or the backbone is unknown.
    """

    def __init__(
        self,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = True,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        min_scale: float = 0.2,
        lr: float = 1.5e-4,
        lr_batch_size: int = 256,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
        warmup_epochs: float = 40.0,
        backbone: str = "vit_base_patch16_224",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            lr=lr, lr_batch_size=lr_batch_size, betas=betas, weight_decay=weight_decay, warmup_epochs=warmup_epochs,
            backbone=backbone, **kwargs,
        )  # fmt: skip
        self.save_hyperparameters()
        self.patch_size, self.grid = patch_grid("MAE", self.backbone)
        self.length = self.grid[0] * self.grid[1]
        functional.masking.kept_patches("MAE", self.length, mask_ratio, None)
        encoder: Any = self.backbone
        encoder.pos_embed = nn.Parameter(sincos_positions(self.num_features, self.grid), requires_grad=False)
        encoder.apply(initialize)
        nn.init.normal_(encoder.cls_token, std=0.02)
        self.decoder = MAEDecoder(
            self.num_features, self.grid, 3 * self.patch_size**2, decoder_dim, decoder_depth, decoder_heads
        )
        self.transform = MAETransform(self.hparams["size"], min_scale)
        self.criterion = MAELoss(self.patch_size, norm_pix_loss)

    def targets(self, batch: Batch) -> tuple[Tensor, ...]:
        """The keys of the masks, as of the views: the same image has another mask in every epoch."""
        return (batch.index,)

    def masks(self, index: Tensor) -> Masks:
        """Random masks: patches without replacement, from a uniform distribution."""
        h: Any = self.hparams
        return functional.random_masks(
            index, self.length, mask_ratio=h.mask_ratio, seed=h.seed, epoch=self.current_epoch
        )

    def encode(self, x: Tensor, keep: Tensor) -> Tensor:
        """The encoder on visible patches alone.

        Args:
            x: normalised images [B, 3, H, W].
            keep: int64 [B, K], the patches that it sees.

        Returns:
            Tokens [B, 1 + K, num_features], the class token first.
        """
        encoder: Any = self.backbone
        embedding = encoder.patch_embed.proj
        pixels = functional.visible_patches(x, keep, self.patch_size)
        tokens = F.linear(pixels, embedding.weight.flatten(1), embedding.bias) + encoder.pos_embed[0, 1:][keep]
        first = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(len(x), -1, -1)
        tokens = torch.cat([first.to(tokens.dtype), tokens], 1)
        for block in encoder.blocks:
            tokens = block(tokens)
        return encoder.norm(tokens)

    def step(self, x: Tensor, index: Tensor) -> Step:  # type: ignore[override]  # one view, and its keys
        """Mask, encode what is visible, decode everything, compare what was removed."""
        masks = self.masks(index)
        tokens = self.encode(x, masks.keep)
        prediction = self.decoder(tokens, masks.restore)  # [N, 1 + L, p p 3], of which the class token's is not read
        h = tokens[:, 0]
        return Step(self.criterion(x, prediction, masks.mask), h, h)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder makes of masked images.

        Args:
            x: normalised images [B, 3, H, W].
            index: int64 [B], keys of the masks.

        Returns:
            The predicted images [B, 3, H, W], normalised like `x`; where patches are normalised one by one they get
            back the mean and the deviation of the true ones. And the mask, [B, L], 1 where a patch was removed.
        """
        masks = self.masks(index)
        predicted = self.decoder(self.encode(x, masks.keep), masks.restore)[:, 1:]
        p = self.patch_size
        if self.hparams["norm_pix_loss"]:
            true = F.pixel_unshuffle(x, p).flatten(2).transpose(1, 2)
            variance, mean = torch.var_mean(true, 2, keepdim=True)
            predicted = predicted * (variance + 1e-6).sqrt() + mean
        rows = predicted.unflatten(2, (p, p, 3)).permute(0, 4, 2, 3, 1).flatten(1, 3)  # (y, x, C) -> (C, y, x)
        return F.pixel_shuffle(rows.unflatten(2, self.grid), p), masks.mask

    # The layout of published checkpoints

    def official_state_dict(self) -> dict[str, Tensor]:
        """Weights under the names of MAE's code: ``torch.save({"model": ...}, file)`` makes its checkpoint of them."""
        state = dict(self.backbone.state_dict())
        for name, value in self.decoder.state_dict().items():
            state[name if name == "mask_token" else _PREFIX + name] = value
        return state

    def load_official_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take weights from a checkpoint of MAE's code.

        Args:
            state: what is in its file, ``{"model": weights}``, or the weights. Of one without a decoder, such as those
                of the encoder alone, the decoder stays as it is.

        Raises:
            ValueError: if names or shapes are those of another model.
        """
        weights = dict(state.get("model", state))
        decoder = {
            name.removeprefix(_PREFIX): weights.pop(name)
            for name in list(weights)
            if name.startswith(_PREFIX) or name == "mask_token"
        }
        try:
            self.backbone.load_state_dict(weights)
            if decoder:
                self.decoder.load_state_dict(decoder)
        except RuntimeError as error:
            raise ValueError(f"MAE: state must be that of {self.architecture.name}: {error}") from None
