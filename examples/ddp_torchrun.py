"""SimCLR in several processes: the negatives of each image come from all of them.

    torchrun --nproc-per-node=2 examples/ddp_torchrun.py --steps 100

One process per GPU, or on a CPU as many as you like. Averaged by DistributedDataParallel, the gradients are those of
one process on the global batch.
"""

import argparse
import os

import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastssl.augment import SimCLRTransform
from fastssl.data import Photos, ViewLoader
from fastssl.losses import NTXentLoss


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=32, help="images per process")
    options = parser.parse_args()
    if "LOCAL_RANK" not in os.environ:
        parser.error("start it by torchrun --nproc-per-node=2 examples/ddp_torchrun.py")
    local, gpu = int(os.environ["LOCAL_RANK"]), torch.cuda.is_available()
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()

    photos = Photos(size=64, per_picture=50)
    photos.setup()
    # Order and views are functions of (seed, epoch, number of the image): processes share an epoch without overlap.
    transform = SimCLRTransform(input_size=64, cj_strength=0.5, gaussian_blur=0)
    loader = ViewLoader(photos.train, transform, options.batch_size, seed=0, device=device)

    torch.manual_seed(0)
    backbone = timm.create_model("resnet10t", num_classes=0)
    projector = nn.Sequential(nn.Linear(backbone.num_features, 256), nn.ReLU(), nn.Linear(256, 128))
    model = nn.Sequential(backbone, projector).to(device)
    if gpu:  # BatchNorm over all processes, which PyTorch has for GPUs only
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = DistributedDataParallel(model, device_ids=[local] if gpu else None)
    criterion = NTXentLoss(temperature=0.5, gather_distributed=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if rank == 0:
        print(f"{world} processes, {world * options.batch_size} images per step, {2 * world * options.batch_size - 2} "
              "negatives for each view")  # fmt: skip

    step = 0
    while step < options.steps:
        for (x0, x1), _, _ in loader:  # each pass over it is the next epoch
            # The views of both kinds at once: the wrapped model is called once per backward pass.
            z0, z1 = model(torch.cat([x0, x1])).chunk(2)
            loss = criterion(z0, z1)  # the mean over the rows of this process
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            mean = loss.detach().clone()
            dist.all_reduce(mean)
            if rank == 0 and (step % 10 == 0 or step == options.steps - 1):
                print(f"step {step}: loss {mean.item() / world:.3f}", flush=True)
            step += 1
            if step == options.steps:
                break

    weights = nn.utils.parameters_to_vector(model.parameters()).detach()
    highest, lowest = weights.clone(), weights.clone()
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    dist.all_reduce(lowest, dist.ReduceOp.MIN)
    if rank == 0:
        print(f"largest difference between the weights of processes: {(highest - lowest).max().item():g}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
