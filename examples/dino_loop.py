"""DINO in a training loop of one's own: Caron et al. 2021 (arXiv 2104.14294), Algorithm 1, with crops of two sizes.

    python examples/dino_loop.py --steps 100

The teacher is the moving average of the student. It sees the two global crops, the student sees the local ones too.
"""

import argparse

import timm
import torch
from torch import nn

from fastssl.augment import DINOTransform
from fastssl.data import Photos, ViewLoader
from fastssl.losses import DINOLoss
from fastssl.models import DINOHead, momentum_copy, update_momentum


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--prototypes", type=int, default=1024, help="K, 65536 in the paper")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)

    photos = Photos(size=64, per_picture=50)
    photos.setup()
    transform = DINOTransform(64, local_crop_size=32, n_local_views=4)  # 2 views of 64 pixels, then 4 of 32
    loader = ViewLoader(photos.train, transform, options.batch_size, seed=0, device=device)

    # With dynamic_img_size the positions are interpolated: one network for both sizes.
    backbone = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=64, patch_size=8, depth=4, dynamic_img_size=True
    )
    head = DINOHead(backbone.num_features, options.prototypes, hidden_dim=512, bottleneck_dim=128)
    student = nn.Sequential(backbone, head).to(device)
    teacher = momentum_copy(student)
    criterion = DINOLoss(options.prototypes, inplace=True)  # the gradient takes the place of the student's logits
    criterion.to(device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-4, weight_decay=0.04)

    step = 0
    while step < options.steps:
        for views, _, _ in loader:
            large, small = torch.cat(views[:2]), torch.cat(views[2:])  # the network sees crops of a size at once
            with torch.no_grad():
                t = teacher(large).chunk(2)
            s = [*student(large).chunk(2), *student(small).chunk(len(views) - 2)]
            loss = criterion(t, s)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 3.0)
            optimizer.step()
            update_momentum(teacher, student, momentum=0.98)  # 0.996 rising to 1 in a long training
            if step % 10 == 0 or step == options.steps - 1:
                mean = torch.cat(t).sub(criterion.center[0]).div(0.04).softmax(1).mean(0)
                used = torch.special.entr(mean).sum().exp().item()  # 1 would be a collapse
                print(f"step {step}: loss {loss.item():.3f}, about {used:.0f} prototypes in use", flush=True)
            step += 1
            if step == options.steps:
                break


if __name__ == "__main__":
    main()
