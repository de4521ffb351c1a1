"""SimSiam as a LightningModule of one's own, of fastssl's views, images and loss: Chen and He 2021 (arXiv 2011.10566).

    python examples/lightning_module.py --steps 100

A method that fastssl does not have yet takes no more than this. Lightning does the rest: devices, precision, logs,
checkpoints.
"""

import argparse

import lightning as L
import timm
import torch
from torch import nn

from fastssl.augment import SimSiamTransform
from fastssl.data import Photos
from fastssl.losses import NegativeCosineSimilarity


class SimSiam(L.LightningModule):
    """Each view predicts the projection of the other one, which gets no gradient."""

    def __init__(self, size=64, width=256):
        super().__init__()
        self.backbone = timm.create_model("resnet10t", num_classes=0)
        self.projector = nn.Sequential(  # g, part of the encoder f
            nn.Linear(self.backbone.num_features, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Linear(width, width, bias=False), nn.BatchNorm1d(width, affine=False),
        )  # fmt: skip
        self.predictor = nn.Sequential(  # h, a bottleneck
            nn.Linear(width, width // 4, bias=False), nn.BatchNorm1d(width // 4), nn.ReLU(),
            nn.Linear(width // 4, width),
        )  # fmt: skip
        self.transform = SimSiamTransform(input_size=size, gaussian_blur=0)
        self.criterion = NegativeCosineSimilarity()

    def training_step(self, batch, batch_index):
        # The batch is uint8 and on this module's device: so are the views.
        x0, x1 = self.transform(batch.image, channels="first", seed=0, epoch=self.current_epoch, index=batch.index)
        z0, z1 = (self.projector(self.backbone(x)) for x in (x0, x1))
        p0, p1 = self.predictor(z0), self.predictor(z1)
        loss = (self.criterion(p0, z1.detach()) + self.criterion(p1, z0.detach())) / 2
        # Of a collapse, where all images look the same, this would be 0 instead of 1 (section 4.1).
        spread = nn.functional.normalize(z0.detach(), dim=1).std(0).mean() * z0.shape[1] ** 0.5
        self.log_dict({"loss": loss, "spread": spread}, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch_size", type=int, default=64)
    options = parser.parse_args()
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        max_steps=options.steps, devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    # Any fastssl.data.ImageData is a DataModule. Photos needs no download.
    trainer.fit(SimSiam(), datamodule=Photos(options.batch_size, size=64, per_picture=50))
    values = {name: value.item() for name, value in trainer.callback_metrics.items()}
    print(f"after {trainer.global_step} steps: loss {values['loss']:.3f}, spread {values['spread']:.2f}")


if __name__ == "__main__":
    main()
