"""``fastssl eval``: what the papers measure, on any encoder, beside the lines above and below it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastssl.cli import UsageError, missing_extra
from fastssl.configs import nearest
from fastssl.data import DATA

if TYPE_CHECKING:  # nothing heavy is imported before the arguments are known to make sense
    import torch
    from jsonargparse import Namespace

    from fastssl.cli.parsing import Parser
    from fastssl.data import ImageData
    from fastssl.evaluate.comparison import Comparison
    from fastssl.models.encoder import Encoder

EXTRA = ("lightning", "jsonargparse", "timm", "rich", "PIL", "sklearn", "safetensors")
_WORDS = ("h", "z")


def main(argv: Sequence[str]) -> int:
    """Evaluate an encoder and write the results.

    Args:
        argv: arguments after `fastssl eval`.

    Returns:
        Exit status: 0, 1 where an extra is missing or a file cannot be read or written, 2 for arguments that make no
        sense, 130 after Ctrl-C.
    """
    arguments = list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(), end="")
        return 0
    if message := missing_extra("eval", EXTRA):
        print(message, file=sys.stderr)
        return 1
    from fastssl.data import UnreadableImage
    from fastssl.evaluate.maps import MissingUMAP

    try:
        return _evaluate(arguments[0], arguments[1:])
    except UsageError as error:
        print(f"fastssl eval: {error}", file=sys.stderr)
        return 2
    except UnreadableImage as error:
        reason = str(error).strip().rpartition("UnreadableImage: ")[2]  # a loader process puts its traceback before it
        print(f"fastssl eval: {reason}; --data.on_error=skip leaves it out", file=sys.stderr)
        return 1
    except MissingUMAP as error:
        print(f"fastssl eval: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _usage() -> str:
    return (
        "usage: fastssl eval SOURCE [--data NAME] [--tasks TASK ...] [options]\n\n"
        "Measure an encoder as the papers do, beside raw pixels, the untrained and a supervised encoder.\n"
        "SOURCE is the folder of a run, a checkpoint, an exported .safetensors, or the name of a timm model.\n\n"
        f"data: that of the run, or one of\n  {', '.join(DATA)}\n\n"
        "examples:\n"
        "  fastssl eval runs/simclr_photos/1                       k-NN, linear probe, k-means, t-SNE\n"
        "  fastssl eval runs/simclr_photos/1 --tasks all           fine-tuning and few labels too: much longer\n"
        "  fastssl eval runs/simclr_photos/1 --supervised train    train the upper line with the run's own budget\n"
        "  fastssl eval resnet50 --pretrained --data folder --data.root ~/pictures\n"
        "  fastssl eval SOURCE --help                              all options\n"
    )


# Arguments


def _parser() -> Parser:
    from fastssl.cli.parsing import Parser
    from fastssl.data import ImageData
    from fastssl.evaluate import tasks
    from fastssl.evaluate.finetune import FewLabels, Recipe
    from fastssl.evaluate.lines import LINES

    words = "; ".join(f"{name}: {line}" for name, line in tasks.TASKS.items())
    # Abbreviations are on their way out in jsonargparse, and hide a word that is wrong.
    about = "Measure an encoder as the papers do."
    parser = Parser(prog="fastssl eval SOURCE", description=about, allow_abbrev=False)
    parser.add_argument("--tasks", nargs="+", help=f"{words}; all. Default: {' '.join(tasks.DEFAULT)}")
    parser.add_argument(
        "--on", nargs="+", help="h: the representation; z: the projection that the loss saw. Default: those there are"
    )
    parser.add_argument("--lines", nargs="+", help=f"what to measure, of {', '.join(LINES)}. Default: all there are")
    parser.add_argument(
        "--supervised",
        default="none",
        help="the line above: none; train: train it with the run's own configuration; or its run or checkpoint",
    )
    parser.add_argument("--out", type=str | None, help="new folder for results; default: eval/<number> in the run")
    parser.add_argument(
        "--cache", type=str | None, help="folder of computed features; none; default: fastssl in the user's cache"
    )
    parser.add_argument("--seed", type=int | None, help="of all that is random; default: that of the run, or 0")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--size", type=int | None, help="side in pixels of the images, if not that of the training")
    parser.add_argument(
        "--pretrained",
        action="store_true",
        help="with the name of a timm model: its published weights, which timm downloads unless they are in its cache",
    )
    for name, cls in (
        ("knn", tasks.KNN),
        ("linear", tasks.Linear),
        ("kmeans", tasks.KMeans),
        ("map", tasks.Map),
        ("finetune", Recipe),
        ("semi", FewLabels),
    ):
        parser.add_class_arguments(cls, name)
    parser.add_subclass_arguments(ImageData, "data", required=True)
    return parser


def _parse(source: str, arguments: list[str]) -> tuple[Namespace, Any, Path | None]:
    """Options, the same with data and recipes made of them, and the configuration of the run, if it is one."""
    import yaml

    from fastssl.cli.method import config_of, silence
    from fastssl.cli.parsing import data_arguments, instantiate, option, without_data_options

    silence()
    given = data_arguments(arguments)
    path = Path(source).expanduser()
    config = config_of(path) if path.exists() else None
    data = option(given, "data")
    parser = _parser()
    if config is not None:
        with without_data_options(config, data) as recipe:
            parser.set_defaults({"data": yaml.safe_load(recipe.read_text()).get("data")})
    elif data is None and "--help" not in given and "-h" not in given:
        _encoder(source, False, None)  # a source that does not exist is the first thing to say
        raise UsageError(
            f"--data is needed, since {source!r} does not say on what: the name of a data set, {', '.join(DATA)}"
        )
    options = parser.parse_args(given)
    made = instantiate(parser, options)
    try:
        made.data.setup("fit")
    except (TypeError, ValueError, OSError, NotImplementedError, ImportError) as error:
        raise UsageError(" ".join(str(error).split())) from None
    return options, made, config


def _words_of(option: str, words: Sequence[str] | None, known: Sequence[str], default: Sequence[str]) -> list[str]:
    """The words of an option, each once, in their usual order."""
    for word in words or []:
        if word not in known:
            raise UsageError(f"--{option}: no {word!r}; {nearest(word, list(known))}")
    return [word for word in known if word in (words or default)]


def _tasks(words: Sequence[str] | None, data: ImageData) -> list[str]:
    from fastssl.evaluate.tasks import DEFAULT, TASKS, WITHOUT_LABELS

    if words and "all" in words:
        _words_of("tasks", words, [*TASKS, "all"], ())
        tasks = [name for name in TASKS if name != "umap" or "umap" in words or find_spec("umap")]
    else:
        tasks = _words_of("tasks", words, list(TASKS), DEFAULT)
    if data.num_classes:
        return tasks
    left = [name for name in tasks if name in WITHOUT_LABELS]
    if words is None or "all" in words:
        print(f"the images have no labels: only {' and '.join(left)}")
        return left
    if refused := [name for name in tasks if name not in left]:
        raise UsageError(
            f"--tasks: {', '.join(refused)} need{'s' * (len(refused) == 1)} labels, and {type(data).__name__} has none "
            f"here; without labels: {', '.join(WITHOUT_LABELS)}"
        )
    return left


def _device(word: str) -> torch.device:
    import torch

    if word == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(word)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {word}: {str(error).splitlines()[0]}") from None
    return device


def _encoder(source: str, pretrained: bool, size: int | None, option: str = "") -> Encoder:
    from fastssl.models.encoder import load_encoder

    if size is not None and size < 1:
        raise UsageError(f"--size must be at least 1, got {size}")
    try:
        return load_encoder(source, pretrained=pretrained, size=size)
    except (ValueError, OSError) as error:
        raise UsageError(f"{option}{' '.join(str(error).split())}") from None


def _check_head(encoder: Encoder, task: str, layers: int) -> None:
    """Whether fine-tuning can start so far inside the projection head."""
    from fastssl.evaluate.finetune import first_layers

    if not encoder.has_projection:
        raise UsageError(f"--{task}.head_layers {layers}: {encoder.label} has no projection, only the representation h")
    try:
        first_layers(encoder, layers)
    except ValueError as error:
        raise UsageError(f"--{task}.head_layers {layers}: {error}") from None


def _make_folder(wanted: str | None, source: str, config: Path | None) -> Path:
    from fastssl.cli.fit import next_numbered

    name = Path(source).name.removeprefix("timm:").removesuffix(".safetensors")
    default = Path("runs/eval", name) if config is None else config.parent / "eval"
    try:
        if wanted is None:
            return next_numbered(default)
        out = Path(wanted).expanduser()
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"--out must be a new or empty folder, {wanted!r} holds something")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: cannot make {str(wanted or default)!r}: {error.strerror}") from None
    return out


# Evaluation


def _evaluate(source: str, arguments: list[str]) -> int:
    if source.startswith("-"):
        raise UsageError(f"the source comes first: fastssl eval SOURCE [options], got {source!r}")
    options, made, config = _parse(source, arguments)

    import torch
    import yaml

    from fastssl._version import __version__
    from fastssl.data import UnreadableImage
    from fastssl.evaluate.cache import FeatureCache, default_folder
    from fastssl.evaluate.comparison import Comparison
    from fastssl.evaluate.lines import LINES, lines_of
    from fastssl.evaluate.tasks import Options

    data = made.data
    tasks = _tasks(options.tasks, data)
    if "umap" in tasks and find_spec("umap") is None:
        print('fastssl eval: a UMAP map needs umap-learn: pip install "fastssl[umap]"', file=sys.stderr)
        return 1
    names = _words_of("lines", options.lines, list(LINES), list(LINES))
    device = _device(options.device)
    seed = options.seed
    if seed is None:
        seed = (yaml.safe_load(config.read_text()).get("seed") or 0) if config else 0
    if not 0 <= seed < 2**32:
        raise UsageError(f"--seed must be in [0, 2^32), got {seed}")
    torch.manual_seed(seed)
    encoder = _encoder(source, options.pretrained, options.size)
    trained = options.pretrained or Path(source).expanduser().exists()
    on = _words_of("on", options.on, _WORDS, _WORDS if encoder.has_projection else ("h",))
    if "z" in on and not encoder.has_projection:
        raise UsageError(f"--on z: {encoder.label} has no projection, only the representation h")
    for task, recipe in (("finetune", made.finetune), ("semi", made.semi)):
        if task in tasks and recipe.head_layers:
            _check_head(encoder, task, recipe.head_layers)
    supervised = None
    if options.supervised == "train" and config is None:
        raise UsageError(f"--supervised train needs the folder of a run, which says how to train; {source!r} is none")
    if options.supervised not in ("none", "train"):
        supervised = _encoder(options.supervised, False, options.size, "--supervised: ")
    out = _make_folder(options.out, source, config)
    print(
        f"{encoder.label}, {len(data.bank_dataloader().dataset):,} training images, {len(data.test):,} test images; "
        f"writing to {out}",
        flush=True,
    )
    if options.supervised == "train":
        assert config is not None
        if status := _train_supervised(config, out):
            return status
        supervised = _encoder(str(out / "supervised"), False, options.size, "--supervised: ")

    start = time.perf_counter()
    folder = default_folder() if options.cache is None else Path(options.cache).expanduser()
    cache = FeatureCache(None if options.cache == "none" else folder)
    settings = Options(made.knn, made.linear, made.kmeans, made.map, made.finetune, made.semi)
    comparison = Comparison(data, cache, tasks, on, settings, seed, device)
    results: dict[str, Any] = {
        "encoder": encoder.label if trained else f"{encoder.label}, untrained",
        "source": source,
        "architecture": encoder.architecture._asdict() | {"kwargs": dict(encoder.architecture.kwargs)},
        "size": encoder.size,
        "data": options.data.as_dict(),
        "tasks": tasks,
        "seed": seed,
        "device": str(device),
        "version": __version__,
        "torch": torch.__version__,
        "lines": comparison.values,
        "details": comparison.details,
    }
    subject = "trained" if trained else "untrained"
    lines = lines_of(encoder, data, seed=seed, trained=trained, supervised=supervised)
    try:
        for name, make in lines.items():
            measured = name in names and comparison.measures
            if measured or name == subject:  # whose features and maps the report shows in any case
                line = None if make is None else make().to(device)
                comparison.add(name, line, subject=name == subject, measured=measured)
                results["seconds"] = time.perf_counter() - start
                _write(out, results)  # what was measured is kept if something later ends the run
    except UnreadableImage:  # a ValueError too
        raise
    except ValueError as error:
        raise UsageError(" ".join(str(error).split())) from None
    return _finish(out, results, comparison)


def _train_supervised(config: Path, out: Path) -> int:
    """Train a supervised encoder as the run was trained; the status of that command."""
    import inspect

    import yaml

    from fastssl.cli import fit
    from fastssl.methods import SelfSupervised, Supervised

    recipe = yaml.safe_load(config.read_text())
    known = {*inspect.signature(SelfSupervised).parameters, *inspect.signature(Supervised).parameters}
    recipe["model"] = {name: value for name, value in recipe["model"].items() if name in known}
    path = out / "supervised.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    print("the supervised encoder, with the configuration of the run:", flush=True)
    return fit.main(["supervised", "--config", str(path), "--out", str(out / "supervised")])


def _write(out: Path, results: dict[str, Any]) -> None:
    (out / "results.json").write_text(json.dumps(results, indent=2, default=str) + "\n")


def _finish(out: Path, results: dict[str, Any], run: Comparison) -> int:
    """Show the table, write the report."""
    from rich.console import Console
    from rich.table import Table

    from fastssl.report import eval_report
    from fastssl.report.tables import lines_table

    if results["lines"]:
        found = lines_table(results["lines"])
        table = Table(title=f"{results['encoder']} on {type(run.data).__name__}")
        for number, head in enumerate(found.heads):
            table.add_column(head, justify="right" if number else "left")
        for row in found.rows:
            table.add_row(*row)
        Console().print(table)
    unreadable = run.data.unreadable
    if unreadable:
        results["unreadable"] = [str(path) for path in unreadable]
        print(f"{len(unreadable)} pictures could not be read and were left out; results.json lists them")
    _write(out, results)
    page = eval_report(out, results=results, data=run.data, features=run.features, maps=run.maps)
    print(f"report: {page}; results.json is in {out}")
    return 0
