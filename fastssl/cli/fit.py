"""`fastssl fit <method>`: train, evaluate, and leave everything in one folder."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from fastssl.cli import UsageError
from fastssl.configs import names, nearest, path_of

if TYPE_CHECKING:  # nothing heavy is imported before the arguments are known to make sense
    from jsonargparse import ArgumentParser, Namespace

    from fastssl.data import ImageData


class Method(NamedTuple):
    """A method that can be trained: where it is, its default configuration, and a line about it."""

    module: str
    name: str
    config: str
    line: str


METHODS = {
    "simclr": Method(
        "fastssl.methods.simclr", "SimCLR", "simclr_photos", "contrast of two views with NT-Xent (Chen et al. 2020)"
    ),
}
_EXTRA = ("lightning", "jsonargparse", "timm", "rich", "PIL")
# Of Lightning's Trainer: set here, or without a meaning in this command.
_NOT_OPTIONS = {
    *("logger", "callbacks", "plugins", "profiler", "default_root_dir", "enable_checkpointing", "barebones"),
    *("enable_model_summary", "enable_autolog_hparams", "model_registry", "limit_predict_batches", "inference_mode"),
    *("limit_test_batches", "num_sanity_val_steps", "fast_dev_run", "reload_dataloaders_every_n_epochs"),
}


def main(argv: Sequence[str]) -> int:
    """Train a method, evaluate it, and write the results.

    Args:
        argv: arguments after `fastssl fit`.

    Returns:
        Exit status: 0, 1 where the training extra is missing or a picture cannot be read, 2 for arguments that make no
        sense, 130 after Ctrl-C.
    """
    arguments = list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(), end="")
        return 0
    name, *rest = arguments
    if name not in METHODS:
        print(f"fastssl fit: no method {name!r}; {nearest(name, list(METHODS))}", file=sys.stderr)
        return 2
    missing = [module for module in _EXTRA if find_spec(module) is None]
    if missing:
        print(
            f'fastssl fit needs the training extra: pip install "fastssl[train]" (missing: {", ".join(missing)})',
            file=sys.stderr,
        )
        return 1
    try:
        return _fit(name, rest)
    except UsageError as error:
        print(f"fastssl fit {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _usage() -> str:
    methods = "\n".join(f"  {name:<10} {method.line}" for name, method in METHODS.items())
    return (
        "usage: fastssl fit <method> [--config NAME_OR_FILE] [options]\n\n"
        "Train a method, evaluate it against raw pixels and the untrained encoder, and keep all in one folder.\n\n"
        f"methods:\n{methods}\n\nconfigurations:\n  {', '.join(names())}\n\n"
        "examples:\n"
        "  fastssl fit simclr\n"
        "  fastssl fit simclr --trainer.max_epochs 3 --model.backbone resnet18 --data.batch_size 128 --seed 1\n"
        "  fastssl fit simclr --resume runs/simclr_photos/1/last.ckpt\n"
        "  fastssl fit simclr --help          all options\n"
        "  fastssl fit simclr --print_config  the configuration as YAML, for --config\n"
    )


# Arguments


def _parser(method: Method, defaults: Path | None) -> ArgumentParser:
    import jsonargparse
    import lightning as L

    from fastssl.data import ImageData

    class Parser(jsonargparse.ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> Any:
            raise UsageError(_one_line(message, self))

    parser = Parser(
        prog=f"fastssl fit {method.module.rpartition('.')[2]}",
        description=f"{method.name}: {method.line}.",
        default_config_files=[str(defaults)] if defaults else [],
    )
    parser.add_argument("--config", action="config", help=f"name ({', '.join(names())}) or YAML file")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and views")
    parser.add_argument(
        "--out", type=str | None, default=None, help="new folder for everything; default runs/<config>/<number>"
    )
    parser.add_argument(
        "--resume", type=str | None, default=None, help="checkpoint to continue from, in its folder and configuration"
    )
    cls = getattr(importlib.import_module(method.module), method.name)
    parser.add_class_arguments(cls, "model")
    parser.add_subclass_arguments(ImageData, "data", required=True)
    parser.add_class_arguments(L.Trainer, "trainer", skip=_NOT_OPTIONS, instantiate=False)
    # Only where several GPUs train, see _synchronise_batch_norm; the option turns it off.
    parser.set_defaults({"trainer.sync_batchnorm": True})
    parser.link_arguments("seed", "model.seed")
    parser.link_arguments("seed", "data.init_args.seed")
    parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
    return parser


def _one_line(message: str, parser: ArgumentParser) -> str:
    """jsonargparse's message on one line, with the nearest options where one is unknown."""
    from fastssl.data import ImageData

    line = " ".join(message.split())
    known = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    unknown = re.search(r"nrecognized arguments?:? (--[^\s=]+)", line)
    if unknown:
        return f"no option {unknown[1]!r}; {nearest(unknown[1], known)}"
    unknown = re.search(r"Option '([^']+)' is not accepted", line)
    if unknown and 'key "data"' in line:
        names_of = [name for reader in ImageData.__subclasses__() for name in inspect.signature(reader).parameters]
        return f"no option '--data.{unknown[1]}'; {nearest(f'--data.{unknown[1]}', [f'--data.{n}' for n in names_of])}"
    return line


def _option(arguments: list[str], name: str) -> str | None:
    """Value of the last `--name value` or `--name=value`."""
    found = None
    for word, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        if word == f"--{name}":
            found = following
        elif word.startswith(f"--{name}="):
            found = word.partition("=")[2]
    return found


def _parse(name: str, arguments: list[str]) -> tuple[ArgumentParser, Namespace, str]:
    """Parser, configuration, and the name of the configuration for the output folder."""
    method = METHODS[name]
    resume, chosen = _option(arguments, "resume"), _option(arguments, "config")
    if resume is not None and not Path(resume).is_file():
        raise UsageError(f"--resume must be a checkpoint, there is no file {resume!r}")
    label = method.config
    defaults: Path | None = path_of(method.config)
    if chosen is not None:  # it replaces the default configuration; mixed with it, it would mean something else
        try:
            path = path_of(chosen)
        except ValueError as error:
            raise UsageError(f"--config: {error}") from None
        arguments = [f"--config={path}" if word == f"--config={chosen}" else word for word in arguments]
        arguments = [
            str(path) if before == "--config" else word
            for before, word in zip(["", *arguments], arguments, strict=False)
        ]
        label, defaults = path.stem, None
    elif resume is not None and (Path(resume).parent / "config.yaml").is_file():
        defaults = Path(resume).parent / "config.yaml"
    parser = _parser(method, defaults)
    config = parser.parse_args(arguments)
    if not 0 <= config.seed < 2**32:
        raise UsageError(f"--seed must be in [0, 2^32), got {config.seed}")
    return parser, config, label


# The output folder: only the process of global rank 0 chooses it and writes there, whoever launched the processes.
# Lightning sends the checkpoint's path to the others.


def _make_output_folder(config: Namespace, label: str) -> Path:
    """A folder that holds nothing yet, or that of the run to be continued."""
    resumed = None if config.resume is None else Path(config.resume).parent
    try:
        if config.out is None and resumed is None:
            return _next_numbered(Path(f"runs/{label}"))
        out = resumed if config.out is None else Path(config.out)
        assert out is not None
        new = resumed is None or out.resolve() != resumed.resolve()
        if new and out.exists() and (not out.is_dir() or any(out.iterdir())):
            hint = "; or give --resume" if resumed is None else ""
            raise UsageError(f"--out must be a new or empty folder, {config.out!r} holds something{hint}")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        where = f"runs/{label}" if config.out is None else config.out
        raise UsageError(f"--out: cannot make {where!r}: {error.strerror}") from None
    return out


def _next_numbered(folder: Path) -> Path:
    """Make the first of folder/1, folder/2, ... that does not exist; of two runs at once each gets its own."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        try:
            (out := folder / str(number)).mkdir()
            return out
        except FileExistsError:
            number += 1


def _keep_metrics(out: Path) -> None:
    """Set the log of an earlier part of a resumed run aside, since Lightning starts its file anew."""
    log, part = out / "metrics.csv", 1
    if log.exists():
        while (kept := out / f"metrics-{part}.csv").exists():
            part += 1
        log.rename(kept)


def _check_checkpoint(path: str, model: Any) -> None:
    """Raise where training could not go on from the file, so that no traceback from the middle of Lightning does."""
    import torch

    def refuse(reason: str) -> NoReturn:
        raise UsageError(f"--resume: {path!r} {reason}") from None

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, depending on where the file is broken
        refuse(f"is no checkpoint that PyTorch can read ({type(error).__name__}); it may be cut off")
    needed = ("state_dict", "hyper_parameters", "optimizer_states", "lr_schedulers", "loops", "epoch", "global_step")
    lacking = [key for key in needed if key not in checkpoint] if isinstance(checkpoint, dict) else needed
    if lacking:
        refuse(f"is no checkpoint of a training run: it lacks {', '.join(lacking)}")
    there, here = ({k: tuple(v.shape) for k, v in d.items()} for d in (checkpoint["state_dict"], model.state_dict()))
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            shapes = (str(list(shapes[name])) if name in shapes else "absent" for shapes in (there, here))
            refuse(f"is of another model: {name} is {' in the file and '.join(shapes)} in this run")
    optimizers = checkpoint["hyper_parameters"].get("optimizer"), model.hparams["optimizer"]
    if optimizers[0] != optimizers[1]:
        refuse(f"was trained with the optimizer {optimizers[0]}, this run has {optimizers[1]}")


# Training and evaluation


def _fit(name: str, arguments: list[str]) -> int:
    from fastssl.data import UnreadableImage

    try:
        return _train(name, arguments)
    except UnreadableImage as error:
        reason = str(error).strip().rpartition("UnreadableImage: ")[2]  # a loader process puts its traceback before it
        print(f"fastssl fit {name}: {reason}; --data.on_error=skip takes another picture in its place", file=sys.stderr)
        return 1


def _train(name: str, arguments: list[str]) -> int:
    import copy
    import logging
    import warnings

    parser, config, label = _parse(name, arguments)

    import lightning as L
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
    from lightning.pytorch.loggers import CSVLogger

    from fastssl.methods.callbacks import EpochLines, Throughput

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fastssl.data").setLevel(logging.INFO)  # what takes long before the first epoch
    for message in (
        "does not have many workers",  # the images are in memory: loader processes would only copy them
        "exists and is not empty",  # a resumed run continues in its folder
        "smaller than the logging interval",  # an epoch of few steps; the next one logs
        r".*LeafSpec.* is deprecated",  # Lightning's own affair
    ):
        warnings.filterwarnings("ignore", message=f".*{message}")
    L.seed_everything(config.seed, verbose=False)
    try:
        # The first name since jsonargparse 4.49, the second before.
        run = (getattr(parser, "instantiate", None) or parser.instantiate_classes)(config)
        model, data = run.model, run.data
        data.setup("fit")
        data.train_dataloader()  # refuses a batch larger than the data
        if config.resume is not None:
            _check_checkpoint(config.resume, model)
    except (ValueError, OSError, NotImplementedError) as error:
        raise UsageError(" ".join(str(error).split())) from None

    terminal = sys.stdout.isatty() and config.trainer.enable_progress_bar is not False
    options = {**config.trainer.as_dict(), "enable_progress_bar": terminal, "enable_model_summary": False}
    synchronise = options.pop("sync_batchnorm")
    throughput = Throughput()
    # One file, replaced at the end of each epoch and when training is stopped. Process 0 says below where.
    checkpoint = ModelCheckpoint(
        "runs", "last", save_top_k=1, save_on_train_epoch_end=True, save_on_exception=True, enable_version_counter=False
    )
    try:
        trainer = L.Trainer(
            **options,
            num_sanity_val_steps=0,
            logger=False,
            callbacks=[checkpoint, throughput, RichProgressBar(leave=True) if terminal else EpochLines()],
        )
    except (ValueError, RuntimeError, L.fabric.utilities.exceptions.MisconfigurationException) as error:
        raise UsageError(f"trainer: {' '.join(str(error).split())}") from None
    _check_processes(trainer.world_size)
    out = Path("runs")
    if trainer.is_global_zero:
        out = _make_output_folder(config, label)
        checkpoint.dirpath = str(out.absolute())
        _keep_metrics(out)
        # For --config and --resume: the run, not where it was written.
        recipe = config.clone()
        recipe.out = recipe.resume = None
        parser.save(recipe, str(out / "config.yaml"), overwrite=True)
        images = f"{len(data.train):,} training images, {len(data.test):,} test images of {data.num_classes} classes"
        print(f"{METHODS[name].name}, {config.model.backbone}, {images}; writing to {out}", flush=True)
    trainer.logger = CSVLogger(out, name="", version="")  # writes in process 0 alone

    untrained = copy.deepcopy(model.backbone)
    if synchronise and trainer.world_size > 1 and trainer.strategy.root_device.type == "cuda":
        _synchronise_batch_norm(model)
    start = time.perf_counter()
    try:
        trainer.fit(model, datamodule=data, ckpt_path=config.resume, weights_only=True if config.resume else None)
    except SystemExit:  # Lightning's answer to Ctrl-C, after the checkpoint
        if not trainer.interrupted:
            raise
        if not trainer.is_global_zero:
            return 130
        kept = out / "last.ckpt"  # unless it was stopped before the first step
        hint = f"; continue with: fastssl fit {name} --resume {kept}" if kept.exists() else ""
        print(f"\nstopped{hint}", file=sys.stderr)
        return 130
    seconds = time.perf_counter() - start
    if not trainer.is_global_zero:
        return 0
    # Read before the evaluation, so that both are those of training.
    memory = _peak_memory(torch.cuda.is_available() and trainer.strategy.root_device.type == "cuda")
    results = {
        "method": name,
        "backbone": config.model.backbone,
        "seed": config.seed,
        "epochs": trainer.current_epoch,
        "training_seconds": seconds,
        "images_per_second": throughput.rate,
        "peak_memory_bytes": memory,
        "accuracy": _evaluate(model, untrained.to(model.device), data, trainer.strategy.root_device),
    }
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    _print_table(results)
    print(f"checkpoint, metrics.csv, config.yaml and results.json are in {out}")
    return 0


def _check_processes(world_size: int) -> None:
    """Refuse a launch by torchrun whose processes would each train alone, into the same folder."""
    import torch

    torchrun = torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()
    launched = int(os.environ["WORLD_SIZE"]) if torchrun else world_size
    if launched != world_size:
        raise UsageError(
            f"trainer: --trainer.devices times --trainer.num_nodes must be {launched}, the number of processes that "
            f"torchrun started, got {world_size}"
        )


def _synchronise_batch_norm(model: Any) -> None:
    """Let BatchNorm take its statistics over all processes, as SimCLR does (section 2.1): in place, on GPUs only.

    timm's conversion, since Lightning's loses the activation that many of timm's norms contain.
    """
    import timm.layers

    for name, child in model.named_children():
        model.add_module(name, timm.layers.convert_sync_batchnorm(child))


def _evaluate(model: Any, untrained: Any, data: ImageData, device: Any) -> dict[str, dict[str, float]]:
    """k-NN and linear accuracy in [0, 1] of the pixels, of the encoder before training, and after it."""
    from fastssl.evaluate import extract, knn_accuracy, linear_accuracy, pixels, recompute_batch_statistics

    def accuracy(features: Any) -> dict[str, float]:
        train, test = features
        k, temperature = model.hparams.knn_k, model.hparams.knn_temperature
        return {
            "knn": knn_accuracy(train, test, data.num_classes, k, temperature),
            "linear": linear_accuracy(train, test, data.num_classes),
        }

    model.to(device)
    loaders = data.val_dataloader()
    results = {"pixels": accuracy([pixels(loader) for loader in loaders])}
    encoders = {"untrained": untrained.to(device), "untrained_calibrated": untrained, "trained": model.backbone}
    for name, backbone in encoders.items():
        model.backbone = backbone
        if name == "untrained_calibrated":
            recompute_batch_statistics(model, model.eval_transform, loaders[0])
        results[name] = accuracy([extract(model, model.eval_transform, loader) for loader in loaders])
    return results


def _peak_memory(cuda: bool) -> int | None:
    """Bytes: of the GPU's allocator, or the resident memory of this process; None where the system does not say."""
    if cuda:
        import torch

        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _print_table(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    memory = results["peak_memory_bytes"]
    table = Table(title=f"{results['method']} ({results['backbone']}), test accuracy")
    table.add_column("representation")
    table.add_column("k-NN %", justify="right")
    table.add_column("linear probe %", justify="right")
    lines = {
        "pixels": "raw pixels",
        "untrained": "untrained encoder",
        "untrained_calibrated": "untrained, calibrated",
        "trained": "trained encoder",
    }
    for key, line in lines.items():
        accuracy = results["accuracy"][key]
        table.add_row(line, f"{100 * accuracy['knn']:.1f}", f"{100 * accuracy['linear']:.1f}")
    Console().print(table)
    print(
        f"{results['epochs']} epochs in {results['training_seconds']:.0f} s, "
        f"{results['images_per_second']:.0f} images/s, "
        f"peak memory {f'{memory / 2**30:.2f} GiB' if memory else 'unknown'}\n"
        "untrained: the same network and seed, BatchNorm statistics still 0 and 1; calibrated: taken from the images\n"
        "raw pixels: images larger than 64 x 64 are averaged down to at most 32 x 32"
    )
