"""SimCLR in a training loop of one's own: timm's backbone, PyTorch's optimizer, fastssl's views and loss.

    python examples/plain_loop.py --steps 100

The images are photographs that come with fastssl's dependencies; any uint8 tensor [N, 3, H, W] will do.
"""

import argparse
import itertools

import timm
import torch
from torch import nn

from fastssl.augment import EvalTransform, SimCLRTransform
from fastssl.data import Photos
from fastssl.evaluate import Features, knn_accuracy
from fastssl.losses import NTXentLoss  # or lightly's: the same arguments and values, in more time and memory


def batches(images, size):
    """Epoch and numbers of the images of each step, in a new order every epoch."""
    for epoch in itertools.count():
        order = torch.randperm(images)
        for start in range(0, images - size + 1, size):
            yield epoch, order[start : start + size]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--per_picture", type=int, default=100, help="images cut out of each photograph")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)

    photos = Photos(size=64, per_picture=options.per_picture)
    photos.setup()
    images = photos.train.images.to(device)

    backbone = timm.create_model("resnet10t", num_classes=0)
    width = backbone.num_features
    projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128))
    model = nn.Sequential(backbone, projector).to(device)
    transform = SimCLRTransform(input_size=64, cj_strength=0.5, gaussian_blur=0)  # all views of a batch in one call
    criterion = NTXentLoss(temperature=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    steps = itertools.islice(batches(len(images), options.batch_size), options.steps)
    for step, (epoch, index) in enumerate(steps):
        # The views are a function of (seed, epoch, index): the same on every device and after every restart.
        x0, x1 = transform(images[index], seed=0, epoch=epoch, index=index)
        z0, z1 = model(torch.cat([x0, x1])).chunk(2)
        loss = criterion(z0, z1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0 or step == options.steps - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)

    # The projector is thrown away. Test images are from halves of the pictures that were never trained on.
    backbone.eval()
    view = EvalTransform(64)
    with torch.no_grad():
        bank, test = (
            Features(torch.cat([backbone(view(part.to(device))) for part in half.images.split(256)]).cpu(), half.labels)
            for half in (photos.train, photos.test)
        )
    accuracy = knn_accuracy(bank, test, photos.num_classes)
    print(f"k-NN accuracy of {photos.num_classes} classes: {accuracy:.1%} (chance: {1 / photos.num_classes:.1%})")


if __name__ == "__main__":
    main()
