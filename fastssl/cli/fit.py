"""`fastssl fit <method>`: train, evaluate, and leave everything in one folder."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastssl.cli import UsageError, missing_extra
from fastssl.configs import names, nearest
from fastssl.data import DATA
from fastssl.methods import METHODS

if TYPE_CHECKING:  # nothing heavy is imported before the arguments are known to make sense
    from jsonargparse import Namespace

EXTRA = ("lightning", "jsonargparse", "timm", "rich", "PIL", "tensorboard")


def main(argv: Sequence[str]) -> int:
    """Train a method, evaluate it, and write the results.

    Args:
        argv: arguments after `fastssl fit`.

    Returns:
        Exit status: 0, 1 where the training extra is missing or a file cannot be read or written, 2 for arguments that
        make no sense, 130 after Ctrl-C, 143 after SIGTERM.
    """
    arguments = list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(), end="")
        return 0
    name, *rest = arguments
    if name not in METHODS:
        print(f"fastssl fit: no method {name!r}; {nearest(name, list(METHODS))}", file=sys.stderr)
        return 2
    if message := missing_extra("fit", EXTRA):
        print(message, file=sys.stderr)
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
        "usage: fastssl fit <method> [--config NAME_OR_FILE] [--data NAME] [options]\n\n"
        "Train a method, evaluate it against raw pixels and the untrained encoder, and keep all in one folder.\n\n"
        f"methods:\n{methods}\n\nconfigurations:\n  {', '.join(names())}\n\ndata:\n  {', '.join(DATA)}\n\n"
        "examples:\n"
        "  fastssl fit simclr\n"
        "  fastssl fit simclr --data folder --data.root ~/pictures --model.backbone resnet50 --model.size 224\n"
        "  fastssl fit simclr --trainer.max_epochs 3 --data.batch_size 128 --seed 1\n"
        "  fastssl fit simclr --resume runs/simclr_photos/1/last.ckpt\n"
        "  fastssl fit simclr --help          all options\n"
        "  fastssl fit simclr --print_config  the configuration as YAML, for --config\n"
    )


# The output folder: only the process of global rank 0 chooses it and writes there, whoever launched the processes.


def make_output_folder(config: Namespace, label: str) -> Path:
    """A folder that holds nothing yet, or that of the run to be continued."""
    resumed = None if config.resume is None else Path(config.resume).parent
    try:
        if config.out is None and resumed is None:
            return next_numbered(Path(f"runs/{label}"))
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


def next_numbered(folder: Path) -> Path:
    """Make the first of folder/1, folder/2, ... that does not exist; of two runs at once each gets its own."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        try:
            (out := folder / str(number)).mkdir()
            return out
        except FileExistsError:
            number += 1


# Training and evaluation


def _fit(name: str, arguments: list[str]) -> int:
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from fastssl.data import UnreadableImage
    from fastssl.methods.checkpoint import OutputError, Stopped

    try:
        return _train(name, arguments)
    except Stopped as stop:
        if getattr(rank_zero_only, "rank", 0):  # one process tells; Lightning would kill it where another one fails
            return 0
        kept = "" if stop.checkpoint is None else f"; continue with: fastssl fit {name} --resume {stop.checkpoint}"
        print(f"\nstopped after {stop.step} steps{kept}", file=sys.stderr)
        return 128 + stop.signal
    except OutputError as error:
        if not getattr(rank_zero_only, "rank", 0):  # what one process cannot write, all of them raise
            print(f"fastssl fit {name}: {error}", file=sys.stderr)
        return 1
    except UnreadableImage as error:
        reason = str(error).strip().rpartition("UnreadableImage: ")[2]  # a loader process puts its traceback before it
        print(f"fastssl fit {name}: {reason}; --data.on_error=skip takes another picture in its place", file=sys.stderr)
        return 1


def _train(name: str, arguments: list[str]) -> int:
    from fastssl.cli.parsing import option

    resume = option(arguments, "resume")
    if resume is not None and not Path(resume).is_file():
        raise UsageError(f"--resume must be a checkpoint, there is no file {resume!r}")

    from fastssl.cli import method

    cli, label = method.parse("fit", name, arguments, method.config_of(resume) if resume else None)
    model, data, config = cli.model, cli.datamodule, cli.config
    try:
        data.train_dataloader()  # refuses a batch larger than the data
    except ValueError as error:
        raise UsageError(str(error)) from None
    steps = 0 if resume is None else int(method.check_checkpoint(resume, model)["global_step"])

    from fastssl.environment import keep_pages
    from fastssl.methods.callbacks import training_callbacks
    from fastssl.methods.checkpoint import AtomicCheckpointIO
    from fastssl.methods.logs import make_loggers

    terminal = sys.stdout.isatty() and config.trainer.enable_progress_bar is not False
    try:
        throughput, checkpoint, callbacks = training_callbacks(
            "runs",
            checkpoint_every=config.checkpoint_every,
            checkpoint_minutes=config.checkpoint_minutes,
            terminal=terminal,
        )
    except ValueError as error:
        raise UsageError(f"--checkpoint_{str(error).removeprefix('RunCheckpoint: ')}") from None
    trainer = cli.make_trainer(
        callbacks,
        enable_progress_bar=terminal,
        enable_checkpointing=True,
        plugins=[AtomicCheckpointIO()],
    )
    out = Path("runs")
    if trainer.is_global_zero:
        out = make_output_folder(config, label)
        checkpoint.folder = out
        cli.parser.save(method.recipe(config), str(out / "config.yaml"), overwrite=True)
        classes = f" of {data.num_classes} classes" if data.num_classes else " without labels"
        images = f"{len(data.train):,} training images, {len(data.test):,} test images{classes}"
        print(f"{cli.method.name}, {config.model.backbone}, {images}; writing to {out}", flush=True)
    trainer.loggers = make_loggers(out, resume, steps)  # write in process 0 alone

    untrained = copy.deepcopy(model.evaluated)
    if config.trainer.sync_batchnorm and trainer.world_size > 1 and trainer.strategy.root_device.type == "cuda":
        method.synchronise_batch_norm(model)
    if trainer.strategy.root_device.type == "cpu":
        keep_pages()
    start = time.perf_counter()
    try:
        trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    except SystemExit:  # Lightning's answer to a Ctrl-C that does not wait for the end of a step
        if not trainer.interrupted or not trainer.is_global_zero:
            raise
        kept = f"; continue with: fastssl fit {name} --resume {checkpoint.path}" if checkpoint.path.exists() else ""
        print(f"\nstopped{kept}", file=sys.stderr)
        return 130
    seconds = time.perf_counter() - start
    if not trainer.is_global_zero:
        return 0
    return _finish(name, cli, trainer, untrained, out, {"seconds": seconds, "rate": throughput.rate})


def _finish(name: str, cli: Any, trainer: Any, untrained: Any, out: Path, took: dict[str, float]) -> int:
    """Evaluate, and write results and report."""
    import torch

    from fastssl._version import __version__
    from fastssl.evaluate.lines import evaluate_fit
    from fastssl.report import fit_report

    model, data, device = cli.model, cli.datamodule, trainer.strategy.root_device
    memory = _peak_memory(torch.cuda.is_available() and device.type == "cuda")  # before the evaluation: of training
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    model.to(device).eval()
    accuracy, features = evaluate_fit(model, untrained, data, device)
    results = {
        "method": name,
        "backbone": cli.config.model.backbone,
        "seed": cli.config.seed,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "training_seconds": took["seconds"],
        "images_per_second": took["rate"],
        "peak_memory_bytes": memory,
        "version": __version__,
        "torch": torch.__version__,
        "accuracy": accuracy,
        "logged": {key: logged[key] for key in sorted(logged) if key not in ("images/s", "eta")},
        "unreadable": [str(path) for path in data.unreadable],
    }
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    _print_table(results)
    if results["unreadable"]:
        print(f"{len(results['unreadable'])} pictures could not be read and were left out; results.json lists them")
    page = fit_report(out, results=results, model=model, data=data, features=features)
    print(f"report: {page}; checkpoint, logs, config.yaml and results.json are in {out}")
    return 0


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

    from fastssl.evaluate.lines import LINES

    memory, accuracy = results["peak_memory_bytes"], results["accuracy"]
    if accuracy:
        table = Table(title=f"{results['method']} ({results['backbone']}), test accuracy")
        table.add_column("representation")
        table.add_column("k-NN %", justify="right")
        table.add_column("linear probe %", justify="right")
        for key, values in accuracy.items():
            table.add_row(LINES[key], f"{100 * values['knn']:.1f}", f"{100 * values['linear']:.1f}")
        Console().print(table)
    words = {
        "z_std": "spread of z (0 collapsed, 1 all over the sphere)",
        "h_rank": "effective rank of h",
        "teacher_entropy": "entropy of the teacher's assignments",
        "assignment_entropy": "of their mean",
        "mi_bound": "mutual information of two views at least",
    }
    values = [f"{line} {results['logged'][key]:.3g}" for key, line in words.items() if key in results["logged"]]
    print("; ".join(values))
    print(
        f"{results['epochs']} epochs in {results['training_seconds']:.0f} s, "
        f"{results['images_per_second']:.0f} images/s, "
        f"peak memory {f'{memory / 2**30:.2f} GiB' if memory else 'unknown'}"
    )
    if "untrained_calibrated" in accuracy:
        print("untrained: the same network, BatchNorm statistics still 0 and 1; calibrated: taken from the images")
