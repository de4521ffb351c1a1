"""The reports of ``fastssl fit`` and ``fastssl eval``: one folder with a page that opens without a server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastssl.data.base import ImageData
from fastssl.evaluate import maps as mapping
from fastssl.evaluate.features import Features
from fastssl.evaluate.subset import spread
from fastssl.report.contact_sheet import contact_sheet
from fastssl.report.curves import curves_figure
from fastssl.report.drawing import plain
from fastssl.report.embedding import embedding_figure
from fastssl.report.facts import data_facts, duration, machine_facts, training_facts
from fastssl.report.logs import read_log
from fastssl.report.neighbors import gallery
from fastssl.report.page import Page, details_html, facts_html
from fastssl.report.tables import Table, accuracy_table, lines_table
from fastssl.report.views import view_rows

if TYPE_CHECKING:
    from fastssl.methods.base import SelfSupervised

_MAPPED = 1000  # points of the map that fit draws: t-SNE of so many takes seconds
_SHOWN = 4  # images on the contact sheet
_LISTED = 20  # of the files that could not be read
_FIT_FILES = ("results.json", "table.md", "config.yaml", "metrics.csv", "last.ckpt")
_EVAL_FILES = ("results.json", "table.md")
# Of the results of an evaluation: shown elsewhere on the page.
_NO_FACTS = ("encoder", "lines", "details", "data", "unreadable", "version", "torch", "seconds")


def fit_report(
    folder: Path,
    *,
    results: Mapping[str, Any],
    model: SelfSupervised,
    data: ImageData,
    features: Mapping[str, Features] | None,
) -> Path:
    """Write the report of a training run into its folder: pictures as PNG files, table.md and index.html.

    What cannot be drawn, for instance a map of two images, is left out with its reason; it never raises for that.

    Args:
        folder: of the run, with its metrics.csv.
        results: what stands in results.json.
        model: the trained method.
        data: after ``setup``.
        features: of the trained encoder, "bank" and "test"; None where they were not computed.

    Returns:
        The path of the page.

    Raises:
        OSError: if the folder cannot be written.
    """
    method, backbone = results.get("method", type(model).__name__), results.get("backbone", "")
    page = Page(
        folder, f"{type(model).__name__}, {backbone}", f"Trained on {type(data).__name__} by fastssl fit {method}."
    )
    accuracy = results.get("accuracy") or {}

    def facts() -> str:
        line = (type(model).__doc__ or "").partition("\n")[0]
        found = [
            ("method", f"{method}: {line}"),
            ("backbone", str(backbone)),
            *data_facts(data),
            ("seed", str(results.get("seed", "unknown"))),
        ]
        settings = [(name, str(value)) for name, value in sorted(model.hparams.items())]
        return facts_html([*found, *training_facts(results), *machine_facts()]) + details_html(
            "All settings of the method", facts_html(settings)
        )

    page.add("The run", facts)
    page.add("Test accuracy", lambda: _table(page, accuracy_table(accuracy) if accuracy else None))
    page.add("Training", lambda: _curves(page))
    page.add("Map of the test images", lambda: _map(page, _need(features, "test"), data))
    page.add("Nearest neighbours", lambda: _gallery(page, _need(features), data))
    page.add("Random views", lambda: _views(page, model, data))
    _add_unreadable(page, data)
    return page.write(_FIT_FILES)


def eval_report(
    folder: Path,
    *,
    results: Mapping[str, Any],
    data: ImageData,
    features: Mapping[str, Features],
    maps: Mapping[str, np.ndarray],
) -> Path:
    """Write the report of an evaluation: pictures as PNG files, table.md and index.html.

    Args:
        folder: made where it is not there.
        results: what stands in results.json.
        data: after ``setup``.
        features: of the encoder, "bank" and "test".
        maps: by name ("tsne", "umap", and of z "tsne_z", "umap_z"), float [N, 2]: of the test images, or of N that
            :func:`fastssl.evaluate.maps.spread` chooses.

    Returns:
        The path of the page.

    Raises:
        OSError: if the folder cannot be written.
    """
    encoder = str(results.get("encoder", "encoder"))
    page = Page(folder, encoder, f"Evaluated on {type(data).__name__} by fastssl eval.")
    lines = results.get("lines") or {}
    other = [(name, _words(value)) for name, value in results.items() if name not in _NO_FACTS and value is not None]
    if (seconds := results.get("seconds")) is not None:
        other.append(("time", duration(seconds)))
    page.add("The evaluation", lambda: facts_html([("encoder", encoder), *data_facts(data), *other, *machine_facts()]))

    def table() -> str:
        html = _table(page, lines_table(lines) if lines else None)
        if not (how := results.get("details")):
            return html
        return html + details_html("How each number came about", f"<pre>{escape(json.dumps(how, indent=2))}</pre>")

    page.add("Test results", table)
    for name, points in maps.items():
        title = "Map of the test images: {} of the {}".format(*_map_words(name))
        page.add(title, partial(_drawn_map, page, name, points, features["test"], data))
    page.add("Nearest neighbours", lambda: _gallery(page, features, data))
    _add_unreadable(page, data)
    return page.write(_EVAL_FILES)


def _map_words(name: str) -> tuple[str, str]:
    """Kind of a map, and of what it is: "tsne" and "umap" are of h, "tsne_z" and "umap_z" of z."""
    kind, _, space = name.partition("_")
    return {"tsne": "t-SNE", "umap": "UMAP"}.get(kind, kind), "projection z" if space == "z" else "representation h"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _need(features: Mapping[str, Features] | None, half: str | None = None) -> Any:
    if features is None:
        raise ValueError("no features were computed")
    return features if half is None else features[half]


def _table(page: Page, table: Table | None) -> str:
    if table is None:
        raise ValueError("there is nothing to measure, since the images have no labels")
    (page.folder / "table.md").write_text(table.markdown(), encoding="utf-8")
    return table.html()


def _curves(page: Page) -> str:
    log = read_log(page.folder)
    if not log:
        raise ValueError("metrics.csv holds no values")
    words = "What was logged, by optimizer step; where there are many values, thin, with their running mean."
    return page.figure(curves_figure(log), "curves.png", words)


def _map(page: Page, test: Features, data: ImageData) -> str:
    chosen = spread(len(test.x), _MAPPED)
    return _drawn_map(page, "tsne", mapping.tsne(test.x[chosen]), test, data)


def _drawn_map(page: Page, name: str, points: np.ndarray, test: Features, data: ImageData) -> str:
    label = test.label[spread(len(test.label), len(points))].numpy()
    which = f"{len(points):,} test images" + (f" of {len(test.label):,}" if len(points) < len(test.label) else "")
    kind, space = _map_words(name)
    figure = embedding_figure(points, label, data.class_names, f"{kind} of the {space}, {which}")
    words = f"{kind}: images with a like {space} lie together; distances between groups say little."
    return page.figure(figure, f"map_{_file_name(name)}.png", words)


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _gallery(page: Page, features: Mapping[str, Features], data: ImageData) -> str:
    picture = gallery(data, features["bank"], features["test"], data.class_names)
    words = "Test images, evenly spread, and the training images with the largest cosine to each."
    return page.picture(picture, "neighbors.png", words)


def _views(page: Page, model: SelfSupervised, data: ImageData) -> str:
    images: Any = data.train
    if not hasattr(images, "__getitems__"):
        batch = next(iter(data.bank_dataloader()))
        image, label, index = batch.image[:_SHOWN], batch.label[:_SHOWN], batch.index[:_SHOWN]
    else:
        image, label, index = images.__getitems__(spread(len(images), _SHOWN).tolist())
    names = [_name(int(known), int(place), data.class_names) for known, place in zip(label, index, strict=True)]
    seed = int(model.hparams["seed"])
    transform: Any = model.transform
    rows = view_rows(transform, image, names, seed=seed, epoch=0, index=index.tolist())
    title = f"Views of {type(model).__name__}, seed {seed}, epoch 0"
    words = "Training images and the random views that the method made of them in the first epoch."
    return page.picture(contact_sheet(title, rows), "views.png", words)


def _name(label: int, place: int, class_names: Sequence[str]) -> str:
    known = plain(class_names[label]) if 0 <= label < len(class_names) else ""
    return f"{known} ({place})" if known else f"image {place}"


def _add_unreadable(page: Page, data: ImageData) -> None:
    unreadable = list(getattr(data, "unreadable", []))
    if unreadable:
        more = f" and {len(unreadable) - _LISTED} more" if len(unreadable) > _LISTED else ""
        files = [(str(number + 1), str(path)) for number, path in enumerate(unreadable[:_LISTED])]
        page.add(
            f"{len(unreadable)} pictures could not be read",
            lambda: facts_html(files) + (f"<p>{more.strip()}; results.json lists them.</p>" if more else ""),
        )
