"""Whole training steps of SimCLR and DINO: the same network with fastssl's views and loss, and with what people use.

A step makes the views of a batch of uint8 images that lie in memory, computes the loss and its gradients, takes a step
of the optimizer and moves the teacher. Every provider steps a :mod:`fastssl.methods` model: the same backbone, head,
teacher, optimizer and clipping. Its views and its loss are what differs. Lightning's loop is left out for all.

Before anything is timed, every provider's loss and gradients for the same views, from the same weights, are compared
with float64, in which the eager loss is computed (``compared``). Views are judged in the family "augment".
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import fastssl

from . import augment_batched, augment_peers, nt_xent_baselines, soft_target_baselines
from .augment_recipes import Recipe, photographs, recipes
from .cases import Case, Expected, Family, Formed, Function, Provider, Rate, Unavailable, Work
from .providers import LOW_PRECISION, check_above_zero

if TYPE_CHECKING:
    from fastssl.methods.base import SelfSupervised

TEMPERATURE = 0.2  # of SimCLR
# By their width: timm's name, and what differs from it.
VITS: dict[int, tuple[str, dict[str, int]]] = {
    128: ("vit_tiny_patch16_224", {"embed_dim": 128, "num_heads": 4}),
    192: ("vit_tiny_patch16_224", {}),
    384: ("vit_small_patch16_224", {}),
    768: ("vit_base_patch16_224", {}),
}
RESNETS = {10: "resnet10t", 18: "resnet18", 50: "resnet50"}  # by their depth
LARGE_HEAD = 8192  # from so many prototypes on, DINO's head is the paper's, below that of `fastssl fit dino`
SIMCLR: dict[str, float] = {"blur": 0, "local": 0, "local_size": 0, "K": 0, "patch": 0, "dim": 0}
DINO: dict[str, float] = {"strength": 0, "blur": 0}
SMALL_IMAGES: dict[str, float] = {"height": 64, "width": 64, "size": 64}
LARGE_IMAGES: dict[str, float] = {"height": 256, "width": 256, "size": 224}
SMALL_CROPS: dict[str, float] = {**DINO, **SMALL_IMAGES, "local": 4, "local_size": 32, "patch": 8, "B": 32}
# The first two are what `fastssl fit simclr` and `fastssl fit dino` train, DINO's with the paper's strength of views.
CASES: dict[str, dict[str, float]] = {
    "simclr": {**SIMCLR, **SMALL_IMAGES, "B": 64, "strength": 0.5, "depth": 10},
    "dino": {**SMALL_CROPS, "K": 256, "depth": 3, "dim": 128},
    "dino-65536": {**SMALL_CROPS, "K": 65536, "depth": 4, "dim": 192},
    "simclr-224": {**SIMCLR, **LARGE_IMAGES, "B": 32, "strength": 1, "blur": 0.5, "depth": 18},
    "simclr-resnet50": {**SIMCLR, **LARGE_IMAGES, "B": 256, "strength": 1, "blur": 0.5, "depth": 50},
    "dino-vit-small": {
        **DINO, **LARGE_IMAGES, "B": 64, "local": 8, "local_size": 96, "K": 65536, "patch": 16, "depth": 12, "dim": 384,
    },
}  # fmt: skip
DEFAULT = ("simclr", "dino", "dino-65536")  # the others take a GPU, or patience
ORDER = ("B", "height", "width", "size", "strength", "blur", "local", "local_size", "K", "patch", "depth", "dim")
LARGE, COMPARED_LARGE = 128, 8  # so many images of a batch are compared with float64 where views are so large

Views = Sequence[Tensor]
Source = Callable[..., Iterable[Views]]  # what a provider's form makes of the inputs -> the views of a step or several


def sizes(name: str, batch: int | None = None) -> dict[str, float]:
    """The sizes of a case in ``CASES``."""
    ordered = {key: CASES[name][key] for key in ORDER}
    return ordered if batch is None else {**ordered, "B": batch}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--case", nargs="+", choices=list(CASES), default=list(DEFAULT),
        help="simclr, dino: what `fastssl fit` trains by default; dino-65536: with the prototypes of the paper; "
        "simclr-224: ResNet-18 on views of 224; simclr-resnet50, dino-vit-small: for a GPU. Default: the first three",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, nargs="+", metavar="B", help="images; default: each case's own")


def cases(arguments: argparse.Namespace, device: str) -> list[Case]:
    if arguments.batch is not None:
        check_above_zero({"--batch": arguments.batch})
        if min(arguments.batch) < 2:
            raise ValueError(f"--batch must be at least 2, for BatchNorm, got {min(arguments.batch)}")
    for package in ("lightning", "timm"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f'{package} is needed and not installed: pip install "fastssl[train]"')
    return [
        Case.named(sizes(name, batch), dtype, device)
        for name in arguments.case
        for batch in arguments.batch or [None]
        for dtype in arguments.dtype
    ]


def tiny_sizes(sizes: Mapping[str, float]) -> dict[str, float]:
    """Few images through a network whose views are as large as its patches and its strides need."""
    most = {"B": 2, "height": 40, "width": 40, "size": 32, "local": 2, "local_size": 16, "K": 64, "depth": 10}
    small = {name: min(value, most.get(name, value)) for name, value in sizes.items()}
    return {**small, "depth": 1} if sizes["patch"] else small


def inputs(case: Case, seed: int) -> tuple[Tensor, Tensor]:
    """Images uint8 [B, H, W, 3] in the computer's memory, and their positions in a data set, int64 [B]."""
    batch, height, width = (int(case.sizes[name]) for name in ("B", "height", "width"))
    images = photographs(batch, height, width, torch.Generator().manual_seed(seed), "cpu")
    return images, torch.arange(seed * batch, (seed + 1) * batch)


def views_wanted(sizes: Mapping[str, float]) -> list[Recipe]:
    """The views of an image: SimCLR's recipe twice, or DINO's crops."""
    each = recipes(sizes)
    return each if sizes["K"] else each * 2


# --- The network ----------------------------------------------------------------------------------------------------


def create(sizes: Mapping[str, float], criterion: nn.Module | None = None) -> SelfSupervised:
    """The model of a case, always with the same weights.

    Args:
        sizes: of the case.
        criterion: its loss; None: the method's own.
    """
    common: dict[str, Any] = {"size": int(sizes["size"]), "optimizer": "adamw", "lr": 1e-3, "warmup_epochs": 1}
    model = without_trainer(lambda: _dino(sizes, common) if sizes["K"] else _simclr(sizes, common))
    if criterion is not None:
        model.criterion = criterion
    return model


def without_trainer(create: Callable[[], SelfSupervised]) -> SelfSupervised:
    """A model that can be trained without Lightning's trainer, always with the same weights."""
    generator = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        model = create()
    finally:
        torch.random.set_rng_state(generator)
    # What a step asks of the trainer.
    model.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=1, current_epoch=0, global_step=0, max_epochs=100, estimated_stepping_batches=100_000
    )
    return model.train()


def backbone(sizes: Mapping[str, float]) -> dict[str, Any]:
    if not sizes["patch"]:
        return {"backbone": RESNETS[int(sizes["depth"])]}
    name, others = VITS[int(sizes["dim"])]
    return {
        "backbone": name,
        "backbone_args": {"patch_size": int(sizes["patch"]), "depth": int(sizes["depth"]), **others},
    }


def _simclr(sizes: Mapping[str, float], common: Mapping[str, Any]) -> SelfSupervised:
    from fastssl.methods.simclr import SimCLR

    return SimCLR(
        TEMPERATURE, strength=sizes["strength"], blur=sizes["blur"], weight_decay=0.05, **backbone(sizes), **common
    )


def _dino(sizes: Mapping[str, float], common: Mapping[str, Any]) -> SelfSupervised:
    from fastssl.methods.dino import DINO

    small = sizes["K"] < LARGE_HEAD
    hidden, bottleneck = (512, 128) if small else (2048, 256)
    return DINO(
        int(sizes["K"]), hidden, bottleneck, local_crops=int(sizes["local"]), local_size=int(sizes["local_size"]),
        head_batch_norm=small, teacher_momentum=0.99, freeze_last_layer=0, weight_decay=0.04,
        **backbone(sizes), **common,
    )  # fmt: skip


class _Contrast(nn.Module):
    """NT-Xent by a function of two views and the temperature."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        return self._function(z0, z1, TEMPERATURE)


class _Assignments(nn.Module):
    """DINO's loss by a function of students, teachers and centre, which also gives the next centre."""

    center: Tensor

    def __init__(self, k: int, function: Callable[..., tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self._function = function
        self.register_buffer("center", torch.zeros(k))

    def forward(self, teacher: Tensor, student: Tensor, epoch: int) -> Tensor:
        loss, center = self._function(student, teacher, self.center)
        self.center = center.detach()
        return loss


class _Lists(nn.Module):
    """lightly's DINOLoss on stacks of views, which it takes as lists."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module

    def forward(self, teacher: Tensor, student: Tensor, epoch: int) -> Tensor:
        return self._module(list(teacher), list(soft_target_baselines.Views.apply(student)))


def eager_criterion(case: Case) -> nn.Module:
    k = int(case.sizes["K"])
    return _Assignments(k, soft_target_baselines.eager) if k else _Contrast(nt_xent_baselines.eager)


def compiled_criterion(case: Case) -> nn.Module:
    """The strongest forms that ``torch.compile`` can be given."""
    k = int(case.sizes["K"])
    if k:
        return _Assignments(k, torch.compile(soft_target_baselines.collapsed, dynamic=False))
    return _Contrast(torch.compile(nt_xent_baselines.symmetric, dynamic=False))


def lightly_criterion(case: Case) -> nn.Module:
    from lightly.loss import DINOLoss, NTXentLoss

    k = int(case.sizes["K"])
    if not k:
        return NTXentLoss(temperature=TEMPERATURE)
    return _Lists(
        DINOLoss(
            output_dim=k,
            teacher_temp=soft_target_baselines.TEACHER_TEMPERATURE,
            student_temp=soft_target_baselines.STUDENT_TEMPERATURE,
            center_momentum=soft_target_baselines.CENTER_MOMENTUM,
        )
    )


# --- A step ---------------------------------------------------------------------------------------------------------


class Clock:
    """Times of the parts of steps.

    Args:
        device: "cpu" or "cuda", where events are recorded and nothing is waited for.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._last: Any = None
        self._laps: dict[str, list[tuple[Any, Any]]] = {}

    def start(self) -> None:
        self._last = self._now()

    def lap(self, part: str) -> None:
        """A part has ended, which began where the last one ended."""
        now = self._now()
        self._laps.setdefault(part, []).append((self._last, now))
        self._last = now

    def medians(self) -> dict[str, float]:
        """Seconds of each part, over the steps since this was asked for last."""
        if self._cuda:
            torch.cuda.synchronize()
        medians = {
            part: statistics.median(a.elapsed_time(b) * 1e-3 if self._cuda else b - a for a, b in laps)
            for part, laps in self._laps.items()
        }
        self._laps.clear()
        return medians

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Training:
    """A model that is trained a step, or as many steps as its source gives views for, with each call.

    Args:
        case: the problem.
        create: makes the model, on the case's device, each time with the same weights.
        source: of views.
        backend: of fastssl; None: as it chooses.
    """

    def __init__(
        self,
        case: Case,
        create: Callable[[], SelfSupervised],
        source: Callable[[SelfSupervised], Source],
        backend: str | None,
    ) -> None:
        self._case, self._create, self._backend = case, create, backend
        self._model = create()
        self._source = source(self._model)
        configured = self._model.configure_optimizers()
        self._optimizer, self._schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
        self.clock = Clock(case.device)

    def __call__(self, *formed: Any) -> tuple[Tensor, Training]:
        """The last step's loss, and itself, for ``compared``."""
        loss: Any = None
        with self._forced():
            self.clock.start()
            for views in self._source(*formed):
                views = [view.to(self._case.device, non_blocking=True) for view in views]
                self.clock.lap("views")
                loss = self._train(views)
        return loss, self

    def _train(self, views: Views) -> Tensor:
        loss = self._loss(self._model, views)
        loss.backward()
        self.clock.lap("forward and backward")
        self._model.on_before_optimizer_step(self._optimizer)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._schedule.step()
        self._model.after_optimizer_step(progress=0.0)
        self.clock.lap("update")
        return loss.detach()

    def compared(self, views: Views) -> tuple[Tensor, ...]:
        """Loss and gradients (see ``gradients``) for given views, from the weights at the start."""
        model = self._create()
        with self._forced():
            loss = self._loss(model, [view.to(self._case.device) for view in views])
            loss.backward()
        return loss.detach(), *(torch.cat(parts) for parts in gradients(model).values())

    def _loss(self, model: SelfSupervised, views: Views) -> Tensor:
        dtype = self._case.dtype
        with torch.autocast(self._case.device, dtype) if dtype in LOW_PRECISION else nullcontext():
            return model.step(*views).loss

    def _forced(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._backend is None else fastssl.backend(self._backend)


def parts(function: Function) -> dict[str, float]:
    """Median seconds of the parts of a provider's steps."""
    training = function.function if isinstance(function, Formed) else function
    assert isinstance(training, Training)
    return training.clock.medians()


# --- What is right --------------------------------------------------------------------------------------------------


def gradients(model: SelfSupervised) -> dict[str, list[Tensor]]:
    """Of the parameters of a model, each flat, of its head and of its encoder."""
    found: dict[str, list[Tensor]] = {"head": [], "encoder": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            found["encoder" if name.startswith("backbone.") else "head"].append(gradient.flatten())
    return found


def common_views(case: Case, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Views, float32, on which providers are compared: of the batch, or of a few images where float64 takes long."""
    images, index = (tensor[:COMPARED_LARGE] if case.sizes["size"] >= LARGE else tensor for tensor in inputs)
    model = create({**case.sizes, "K": min(case.sizes["K"], 1)})
    return list(model.transform(images, channels="last", seed=0, epoch=0, index=index, dtype=torch.float32))


def truth(case: Case, inputs: tuple[Tensor, ...], seed: int) -> list[Expected]:
    """Loss and gradients in float64."""
    model = create(case.sizes, eager_criterion(case)).double().to(case.device)
    loss = model.step(*(view.to(case.device, torch.float64) for view in common_views(case, inputs))).loss
    loss.backward()
    return expected_of(model, loss)


def expected_of(model: SelfSupervised, loss: Tensor) -> list[Expected]:
    """A loss and the gradients that it has left in the model, both of float64.

    A gradient is accumulated through a whole network: in place of the sum of its terms stands the largest gradient of
    its parameter, or a thousandth of the largest of all.
    """
    expected = [Expected("loss", loss.detach(), loss.detach().abs(), loss.shape)]
    for name, each in gradients(model).items():
        value = torch.cat(each)
        least = value.abs().max() / 1000
        terms = torch.cat([one.abs().max().maximum(least).expand_as(one) for one in each])
        expected.append(Expected(f"gradient of the {name}", value, terms, value.shape, is_gradient=True))
    return expected


def compared(case: Case, inputs: Sequence[Tensor], result: tuple[Tensor, Training]) -> tuple[Tensor, ...]:
    """What stands beside ``truth``."""
    return result[1].compared(common_views(case, inputs))


def work(case: Case, which: str) -> Work:
    return Work(case.sizes["B"] * _flops_of_an_image(tuple(case.sizes.items())), 0)


@lru_cache
def _flops_of_an_image(sizes: tuple[tuple[str, float], ...]) -> float:
    """Of the network's forward and backward pass, and of the teacher's forward pass, as PyTorch counts products."""
    from torch.utils.flop_counter import FlopCounterMode

    class Sum(nn.Module):
        def forward(self, *z: Tensor, **_: Any) -> Tensor:
            return z[0].sum() + z[1].sum()

    images = 2
    model = create(dict(sizes), Sum())
    views = [torch.zeros(images, 3, recipe.size, recipe.size) for recipe in views_wanted(dict(sizes))]
    with FlopCounterMode(display=False) as counter:
        model.step(*views).loss.backward()
    return counter.get_total_flops() / images


# --- Providers ------------------------------------------------------------------------------------------------------

WORKERS = {"cpu": augment_peers.WORKERS, "cuda": os.cpu_count() or 1}


def _creating(case: Case, criterion: Callable[[Case], nn.Module] | None = None) -> Callable[[], SelfSupervised]:
    return lambda: create(case.sizes, None if criterion is None else criterion(case)).to(case.device)


def _own_views(case: Case) -> Callable[[SelfSupervised], Source]:
    """The method's own, all of a batch in one call."""

    def of(model: SelfSupervised) -> Source:
        def source(images: Tensor, index: Tensor) -> Iterator[Views]:
            batch = (tensor.to(case.device, non_blocking=True) for tensor in (images, index))
            images, index = batch
            yield model.transform(images, channels="first", seed=0, epoch=0, index=index, dtype=torch.float32)

        return source

    return of


def _views_of(build: Callable[[Case], Function], case: Case) -> Callable[[SelfSupervised], Source]:
    """A library's views of the batch in memory, as the family "augment" has them: of SimCLR one per call."""
    device = case.device if build in (_batched, _compiled_views) else "cpu"

    def of(_: SelfSupervised) -> Source:
        function = build(Case(case.sizes, torch.float32, device))
        calls = len(views_wanted(case.sizes)) // len(recipes(case.sizes))

        def source(*images: Any) -> Iterator[Views]:
            on_device = [x.to(device, non_blocking=True) if isinstance(x, Tensor) else x for x in images]
            yield [view for _ in range(calls) for view in function(*on_device)]

        return source

    return of


_batched = augment_peers.flushing(augment_batched.batched)
_compiled_views = augment_peers.flushing(augment_batched.compiled)


def _channels_first(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    return _pinned(images.movedim(-1, 1)), index


def _pinned(images: Tensor) -> Tensor:
    images = images.contiguous()
    return images.pin_memory() if torch.cuda.is_available() else images


def check_backend(case: Case, backend: str | None, *operations: str) -> None:
    """Raises ``Unavailable`` where a forced backend cannot serve one of the operations."""
    from fastssl.ops import registry

    try:
        for operation in operations if backend is not None else ():
            dtype = torch.uint8 if operation == "augment_views" else case.dtype
            registry.choose(operation, case.device, dtype, backend or "")
    except RuntimeError as error:
        raise Unavailable(str(error)) from error


def _fastssl(case: Case, backend: str | None = None) -> Function:
    check_backend(case, backend, "nt_xent", "soft_target_cross_entropy", "augment_views")
    return Formed(Training(case, _creating(case), _own_views(case), backend), _channels_first)


def _alone(make: augment_peers.Maker, case: Case) -> Function:
    """lightly's loss and views that are made one by one in this process, of PIL images."""
    source = _views_of(augment_peers.one_by_one(make), case)
    return Formed(
        Training(case, _creating(case, lightly_criterion), source, None),
        lambda images, index: tuple(augment_peers.as_pil(images)),
    )


def _in_workers(make: augment_peers.Maker, case: Case) -> Function:
    """lightly's loss and views from worker processes, which go on while the network is trained."""
    loader = augment_peers.Loader(
        make,
        augment_peers.as_pil,
        case,
        views_wanted(case.sizes),
        num_workers=WORKERS[case.device],
        pin_memory=case.device == "cuda",
    )
    return Formed(Training(case, _creating(case, lightly_criterion), lambda model: loader.epoch, None), loader.show)


def _plain(views: Callable[[Case], Function], criterion: Callable[[Case], nn.Module], case: Case) -> Function:
    """All images at once in plain PyTorch."""
    return Formed(
        Training(case, _creating(case, criterion), _views_of(views, case), None),
        lambda images, index: (_channels_first(images, index)[0],),
    )


def _views_note(words: str) -> Callable[[Case], str]:
    def note(case: Case) -> str:
        count = min(case.sizes["B"], COMPARED_LARGE) if case.sizes["size"] >= LARGE else case.sizes["B"]
        return f"{words}; gate: loss and gradients of {count:g} images"

    return note


def _loader_note(case: Case) -> str:
    several = f"lightly's loss, DataLoader with {WORKERS[case.device]} workers"
    return _views_note(f"{several}, {augment_peers.BATCHES} steps an epoch, the first waits for its views")(case)


def _matrices(case: Case) -> float:
    """Bytes of the logits in the forms that an eager loss stores; a network's activations are far less beside them."""
    views = 2 + case.sizes["local"]
    return 4 * case.sizes["B"] * case.sizes["K"] * views * 6


# lightly's loss at many prototypes: see the family "soft_target".
_OF_LIGHTLY: dict[str, Any] = {"finish": compared, "slack": 1000.0, "bytes_needed": _matrices}
PROVIDERS = {
    "fastssl": Provider(_fastssl, note=_views_note("the method as it comes"), finish=compared),
    **{
        f"fastssl-{name}": Provider(
            partial(_fastssl, backend=name), note=_views_note(f"backend {name}"), finish=compared
        )
        for name in ("chunked", "triton")
    },
    "eager": Provider(
        partial(_plain, _batched, eager_criterion),
        note=_views_note("views of all images at once in plain PyTorch"),
        finish=compared,
        bytes_needed=_matrices,
    ),
    "compiled": Provider(
        partial(_plain, _compiled_views, compiled_criterion),
        note=_views_note("torch.compile of the leanest views and loss that we could write"),
        finish=compared,
        compiles=True,
    ),
    "lightly": Provider(
        partial(_alone, augment_peers.lightly), note=_views_note("lightly's loss and views, one by one"), **_OF_LIGHTLY
    ),
    "lightly-workers": Provider(
        partial(_in_workers, augment_peers.lightly),
        note=_loader_note, batches=augment_peers.BATCHES, elsewhere=True, **_OF_LIGHTLY,
    ),
    "torchvision-pil": Provider(
        partial(_alone, augment_peers.torchvision_pil),
        note=_views_note("lightly's loss, torchvision's views, one by one"), **_OF_LIGHTLY,
    ),
    "torchvision-pil-workers": Provider(
        partial(_in_workers, augment_peers.torchvision_pil),
        note=_loader_note, batches=augment_peers.BATCHES, elsewhere=True, **_OF_LIGHTLY,
    ),
}  # fmt: skip

FAMILY = Family(
    name="training",
    module=__name__,
    subject="fastssl",
    baseline="eager",
    add_arguments=add_arguments,
    cases=cases,
    inputs=inputs,
    truth=truth,
    tiny_sizes=tiny_sizes,
    work=work,
    work_model="which is that of products: those of the network, forward and backward, and of the teacher, at the rate "
    "of the best product; views, loss and update are not counted",
    providers=PROVIDERS,
    optional=frozenset({"fastssl-chunked", "fastssl-triton", "eager", "compiled", "torchvision-pil"}),
    passes=("step",),
    rate=Rate("images/s", lambda case: case.sizes["B"]),
    parts=parts,
)
