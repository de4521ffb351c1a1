"""`fastssl test <method>`: the evaluation that runs during training, on a finished model, by Lightning's test loop."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fastssl.cli import UsageError, missing_extra
from fastssl.cli.fit import EXTRA
from fastssl.configs import nearest
from fastssl.methods import METHODS


def main(argv: Sequence[str]) -> int:
    """Test a checkpoint.

    Args:
        argv: arguments after `fastssl test`.

    Returns:
        Exit status: 0, 1 where the training extra is missing or a picture cannot be read, 2 for arguments that make no
        sense.
    """
    arguments = list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(), end="")
        return 0
    name, *rest = arguments
    if name not in METHODS:
        print(f"fastssl test: no method {name!r}; {nearest(name, list(METHODS))}", file=sys.stderr)
        return 2
    if message := missing_extra("test", EXTRA):
        print(message, file=sys.stderr)
        return 1
    from fastssl.data import UnreadableImage

    try:
        return _test(name, rest)
    except UsageError as error:
        print(f"fastssl test {name}: {error}", file=sys.stderr)
        return 2
    except UnreadableImage as error:
        print(f"fastssl test {name}: {str(error).strip().rpartition('UnreadableImage: ')[2]}", file=sys.stderr)
        return 1


def _usage() -> str:
    return (
        "usage: fastssl test <method> --checkpoint RUN_OR_FILE [options]\n\n"
        "k-NN accuracy, that of the online probe, and the effective rank of the representations, on the test images.\n"
        "The configuration is that of the run. `fastssl eval` has the protocols of the papers.\n\n"
        f"methods: {', '.join(METHODS)}\n\n"
        "examples:\n"
        "  fastssl test simclr --checkpoint runs/simclr_photos/1\n"
        "  fastssl test simclr --checkpoint runs/simclr_photos/1/last.ckpt --trainer.devices 2 --out tested\n"
        "  fastssl test simclr --help          all options\n"
    )


def _test(name: str, arguments: list[str]) -> int:
    from fastssl.cli import method
    from fastssl.cli.parsing import option

    given = option(arguments, "checkpoint")
    file = None
    if given is not None:
        file = Path(given) / "last.ckpt" if Path(given).is_dir() else Path(given)
        if not file.is_file():
            raise UsageError(
                f"--checkpoint must be a checkpoint or the folder of a run, there is no file {str(file)!r}"
            )
        made_by = method.method_of(file, "--checkpoint")
        if made_by != name:
            raise UsageError(f"--checkpoint: {str(file)!r} is of the method {made_by!r}; fastssl test {made_by}")
    cli, _ = method.parse("test", name, arguments, None if file is None else method.config_of(file))
    assert file is not None  # the parser requires it
    checkpoint = method.check_checkpoint(str(file), cli.model, "--checkpoint", training=False)
    cli.model.load_state_dict(checkpoint["state_dict"])
    trainer = cli.make_trainer([], enable_progress_bar=sys.stdout.isatty())
    values = trainer.test(cli.model, dataloaders=cli.datamodule.val_dataloader(), verbose=False)
    if not trainer.is_global_zero:
        return 0
    results = {key: value for part in values for key, value in part.items()}
    if not results:
        raise UsageError("there are no test images")
    for key, value in sorted(results.items()):
        print(f"{key:<8}{value:.4g}")
    if cli.config.out is not None:
        out = Path(cli.config.out)
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(json.dumps({"checkpoint": str(file), **results}, indent=2) + "\n")
    return 0
