"""Method, data and trainer from the command line, by LightningCLI: what `fit` and `test` share."""

from __future__ import annotations

import logging
import os
import warnings
from argparse import SUPPRESS
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from fastssl.cli import UsageError
from fastssl.cli.parsing import OneLine, data_arguments, option, replace_option, without_data_options
from fastssl.configs import names, path_of
from fastssl.data import ImageData
from fastssl.methods import METHODS

# Of Lightning's Trainer: set here, or without a meaning in these commands.
_NOT_OPTIONS = {
    *("logger", "plugins", "default_root_dir", "enable_checkpointing", "barebones", "enable_model_summary"),
    *("enable_autolog_hparams", "model_registry", "limit_predict_batches", "inference_mode", "num_sanity_val_steps"),
    *("fast_dev_run", "reload_dataloaders_every_n_epochs"),
}


class _Parser(OneLine, LightningArgumentParser):
    pass


class MethodCLI(LightningCLI):
    """LightningCLI for one method: its options, those of any data set, and the trainer's.

    The trainer is made by the command, which knows its callbacks.

    Args:
        command: "fit" or "test".
        name: of the method, a key of METHODS.
        arguments: of the command line, after the method.
        defaults: YAML file of what is not given.
    """

    def __init__(self, command: str, name: str, arguments: Sequence[str], defaults: Path | None) -> None:
        self.command, self.method = command, METHODS[name]
        super().__init__(
            self.method.load(),
            ImageData,
            subclass_mode_data=True,
            save_config_callback=None,  # written by process 0, once it has chosen the folder
            seed_everything_default=0,
            parser_class=_Parser,
            parser_kwargs={
                "prog": f"fastssl {command} {name}",
                "description": f"{self.method.name}: {self.method.line}.",
                "default_config_files": [str(defaults)] if defaults else [],
            },
            args=list(arguments),
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # methods save their own arguments
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser with `--config` for names and files."""
        parser = self.parser_class(**kwargs)
        parser.add_argument("--config", action="config", help=f"name ({', '.join(names())}) or YAML file")
        return parser

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options of the command itself."""
        parser.add_argument("--seed", type=int, default=0, help="of weights, order and views")
        parser.add_argument(
            "--out", type=str | None, default=None, help="new folder for everything; default runs/<config>/<number>"
        )

        def of_fit(words: str) -> str:
            return words if self.command == "fit" else SUPPRESS  # understood, since the run's configuration has them

        parser.add_argument(
            "--resume",
            type=str | None,
            default=None,
            help=of_fit("checkpoint to continue from, in its folder and configuration"),
        )
        parser.add_argument(
            "--checkpoint_every",
            type=int,
            default=0,
            help=of_fit("steps between two checkpoints; 0: at each epoch's end"),
        )
        parser.add_argument(
            "--checkpoint_minutes",
            type=float,
            default=10.0,
            help=of_fit("minutes between two checkpoints; 0: no limit"),
        )
        if self.command == "test":
            parser.add_argument("--checkpoint", type=str, required=True, help="checkpoint of fit, or folder of a run")

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Those of method, data and trainer."""
        parser.add_class_arguments(self._model_class, "model")
        parser.add_subclass_arguments(ImageData, "data", required=True)
        skip = _NOT_OPTIONS | ({"limit_test_batches"} if self.command == "fit" else set())
        parser.add_class_arguments(L.Trainer, "trainer", skip=skip, instantiate=False)
        # Only where several GPUs train, see synchronise_batch_norm; the option turns it off.
        parser.set_defaults({"trainer.sync_batchnorm": True})
        parser.link_arguments("seed", "model.seed")
        parser.link_arguments("seed", "data.init_args.seed")
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and check what jsonargparse cannot."""
        self.config = parser.parse_args(args)
        if not 0 <= self.config.seed < 2**32:
            raise UsageError(f"--seed must be in [0, 2^32), got {self.config.seed}")

    def _set_seed(self) -> None:
        L.seed_everything(self.config.seed, verbose=False)

    def instantiate_classes(self) -> None:
        """Method and data, with the images found."""
        try:
            super().instantiate_classes()
            self.datamodule.setup("fit")
        except (TypeError, ValueError, OSError, NotImplementedError, ImportError) as error:
            raise UsageError(" ".join(str(error).split())) from None

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """None; see :meth:`make_trainer`."""

    def make_trainer(self, callbacks: list[L.Callback], **options: Any) -> L.Trainer:
        """The trainer.

        Args:
            callbacks: in addition to those of the configuration.
            options: of Lightning's trainer, instead of those of the configuration.

        Raises:
            UsageError: where Lightning refuses an option, or torchrun started another number of processes.
        """
        chosen = self.config_init.trainer.as_dict()
        chosen["callbacks"] = [*_as_list(chosen.get("callbacks")), *callbacks]
        chosen.pop("sync_batchnorm")
        try:
            trainer = L.Trainer(**(chosen | options), logger=False, num_sanity_val_steps=0, enable_model_summary=False)
        except (ValueError, RuntimeError, MisconfigurationException) as error:
            raise UsageError(f"trainer: {' '.join(str(error).split())}") from None
        check_processes(trainer.world_size)
        return trainer


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


class Parsed(NamedTuple):
    """Method, data, and what was asked for.

    Attributes:
        cli: with `config`, `model` and `datamodule`.
        label: name of the configuration.
    """

    cli: MethodCLI
    label: str


def parse(command: str, name: str, arguments: Sequence[str], defaults: Path | None = None) -> Parsed:
    """Parse the arguments of a command and make method and data.

    Args:
        command: "fit" or "test".
        name: of the method.
        arguments: after the method's name.
        defaults: YAML file in the place of the method's own configuration.

    Raises:
        UsageError: if anything is wrong.
    """
    silence()
    given = data_arguments(arguments)
    chosen, data = option(given, "config"), option(given, "data")
    with ExitStack() as stack:
        if chosen is None:
            label, config = METHODS[name].config, defaults or path_of(METHODS[name].config)
            config = stack.enter_context(without_data_options(config, data))
            return Parsed(MethodCLI(command, name, given, config), label)
        # It replaces the default configuration; mixed with it, it would mean something else.
        try:
            config = path_of(chosen)
        except ValueError as error:
            raise UsageError(f"--config: {error}") from None
        label = config.stem
        config = stack.enter_context(without_data_options(config, data))
        return Parsed(MethodCLI(command, name, replace_option(given, "config", str(config)), None), label)


def silence() -> None:
    """Leave out what Lightning says about its own affairs, and say what takes long before the first epoch."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fastssl.data").setLevel(logging.INFO)
    for message in (
        "does not have many workers",  # the images are in memory: loader processes would only copy them
        "exists and is not empty",  # a resumed run continues in its folder
        "smaller than the logging interval",  # an epoch of few steps; the next one logs
        r".*LeafSpec.* is deprecated",
    ):
        warnings.filterwarnings("ignore", message=f".*{message}")


def check_processes(world_size: int) -> None:
    """Refuse a launch by torchrun whose processes would each train alone, into the same folder."""
    torchrun = torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()
    launched = int(os.environ["WORLD_SIZE"]) if torchrun else world_size
    if launched != world_size:
        raise UsageError(
            f"trainer: --trainer.devices times --trainer.num_nodes must be {launched}, the number of processes that "
            f"torchrun started, got {world_size}"
        )


def method_of(path: str | Path, option: str) -> str:
    """Name of the method that wrote a checkpoint.

    Raises:
        UsageError: if it is none of fastssl's.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return str(checkpoint["fastssl"]["method"])
    except Exception as error:  # of many kinds, depending on where the file is broken
        reason = f"is no checkpoint of fastssl fit ({type(error).__name__}); it may be cut off"
        raise UsageError(f"{option}: {str(path)!r} {reason}") from None


def check_checkpoint(path: str, model: Any, option: str = "--resume", training: bool = True) -> dict[str, Any]:
    """A checkpoint that fits; raise where it does not, so that no traceback from the middle of Lightning does.

    Args:
        path: of the file.
        model: that is to take its weights.
        option: for messages.
        training: whether training has to be able to go on from it.

    Raises:
        UsageError: saying what is wrong with it.
    """

    def refuse(reason: str) -> NoReturn:
        raise UsageError(f"{option}: {path!r} {reason}") from None

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, depending on where the file is broken
        refuse(f"is no checkpoint that PyTorch can read ({type(error).__name__}); it may be cut off")
    needed: tuple[str, ...] = ("state_dict", "hyper_parameters")
    if training:
        needed += ("optimizer_states", "lr_schedulers", "loops", "epoch", "global_step")
    lacking = [key for key in needed if key not in checkpoint] if isinstance(checkpoint, dict) else needed
    if lacking:
        refuse(f"is no checkpoint of a training run: it lacks {', '.join(lacking)}")
    there, here = ({k: tuple(v.shape) for k, v in d.items()} for d in (checkpoint["state_dict"], model.state_dict()))
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            shapes = (str(list(shapes[name])) if name in shapes else "absent" for shapes in (there, here))
            refuse(f"is of another model: {name} is {' in the file and '.join(shapes)} in this run")
    optimizers = checkpoint["hyper_parameters"].get("optimizer"), model.hparams["optimizer"]
    if training and optimizers[0] != optimizers[1]:
        refuse(f"was trained with the optimizer {optimizers[0]}, this run has {optimizers[1]}")
    return checkpoint


def synchronise_batch_norm(model: Any) -> None:
    """Let BatchNorm take its statistics over all processes, as SimCLR does (section 2.1): in place, on GPUs only.

    timm's conversion, since Lightning's loses the activation that many of timm's norms contain.
    """
    import timm.layers

    for name, child in model.named_children():
        model.add_module(name, timm.layers.convert_sync_batchnorm(child))


def config_of(run: str | Path) -> Path | None:
    """config.yaml beside a checkpoint or in a run's folder, if there is one."""
    path = Path(run)
    file = (path if path.is_dir() else path.parent) / "config.yaml"
    return file if file.is_file() else None


def recipe(config: Namespace) -> Namespace:
    """What a run was made of, and not where it was written: for --config and --resume."""
    kept = config.clone()
    for name in ("out", "resume", "checkpoint", "config"):
        if name in kept:
            kept[name] = None
    return kept
