"""The page of a report: one HTML file beside its pictures, without scripts or anything from elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from PIL import Image

from fastssl.report.drawing import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)
_DPI = 200
_SCREEN = 96  # pixels per inch of a page

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 1080px; color: #222; background: #fff;
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-top: .8rem; border-top: 1px solid #e4e4e4; }
p { margin: .4rem 0; max-width: 46rem; }
p.lead, figcaption, dl.notes { color: #555; }
figure { margin: .8rem 0; }
div, pre { overflow-x: auto; }
figcaption { font-size: .87rem; max-width: 46rem; }
img { max-width: 100%; height: auto; display: block; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; border-bottom: 1.5px solid #222; padding: .3rem 1.2rem .3rem 0; }
th:not(:first-child), td.number { text-align: right; }
td { border-bottom: 1px solid #e9e9e9; padding: .3rem 1.2rem .3rem 0; vertical-align: top; overflow-wrap: anywhere; }
table.facts th { border: 0; border-bottom: 1px solid #e9e9e9; font-weight: 400; color: #555; white-space: nowrap; }
table.facts td { text-align: left; }
dl.notes { font-size: .87rem; display: grid; grid-template-columns: max-content auto; gap: .1rem 1rem; }
dl.notes dt { font-weight: 600; } dl.notes dd { margin: 0; }
p.missing { color: #555; font-style: italic; }
summary { cursor: pointer; color: #0b5394; }
nav a { margin-right: 1rem; color: #0b5394; }
code { font-size: .9em; }
"""


class Page:
    """A page that grows section by section.

    Args:
        folder: where it and its pictures are written; made where it is not there.
        title: of the page.
        lead: a line below it.
    """

    def __init__(self, folder: Path, title: str, lead: str) -> None:
        self.folder, self.title, self.lead = Path(folder), plain(title), plain(lead)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sections: list[str] = []

    def add(self, title: str, make: Callable[[], str]) -> None:
        """Add a section with the HTML that `make` returns.

        Where it fails, the reason stands in its place: a picture that cannot be drawn must not cost a long run the rest
        of its report. A ValueError says what is wrong with the data, and is expected; all else is logged too.
        """
        try:
            body = make()
        except ValueError as error:
            body = f'<p class="missing">Not drawn: {escape(plain(str(error)))}.</p>'
        except Exception as error:  # of anything that a data set or a library may come up with
            _log.warning("report: %s failed", title, exc_info=True)
            words = f"{type(error).__name__}: {plain(str(error))}"
            body = f'<p class="missing">Not drawn, because of an error: {escape(words)}</p>'
        self._sections.append(f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n")

    def figure(self, figure: Figure, name: str, words: str) -> str:
        """Write a matplotlib figure as `name`, a PNG file, and return its HTML; `words` say what it shows."""
        figure.savefig(self.folder / name, format="png", dpi=_DPI)
        width, height = (round(side * _SCREEN) for side in figure.get_size_inches())
        return _figure(name, width, height, words)

    def picture(self, picture: Image.Image, name: str, words: str) -> str:
        """Write a picture as `name`, a PNG file, and return its HTML."""
        picture.save(self.folder / name, "PNG")
        return _figure(name, picture.width, picture.height, words)

    def write(self, files: Iterable[str]) -> Path:
        """Write index.html and return its path.

        Args:
            files: names in the folder to link to, where they are there.
        """
        there = [name for name in files if (self.folder / name).is_file()]
        links = " ".join(f'<a href="{quote(name)}">{escape(name)}</a>' for name in there)
        path = self.folder / "index.html"
        path.write_text(
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            f'<h1>{escape(self.title)}</h1>\n<p class="lead">{escape(self.lead)}</p>\n<nav>{links}</nav>\n'
            + "".join(self._sections)
            + "</body>\n</html>\n",
            encoding="utf-8",
        )
        return path


def _figure(name: str, width: int, height: int, words: str) -> str:
    link = quote(name)
    words = escape(plain(words))
    return (
        f'<figure><a href="{link}"><img src="{link}" width="{width}" height="{height}" alt="{words}"></a>'
        f"<figcaption>{words}</figcaption></figure>"
    )


def facts_html(facts: Sequence[tuple[str, str]]) -> str:
    """Names and values in two columns."""
    rows = "".join(f"<tr><th>{escape(plain(n))}</th><td>{escape(plain(v))}</td></tr>\n" for n, v in facts)
    return f'<table class="facts">\n{rows}</table>'


def details_html(summary: str, body: str) -> str:
    """Something that is shown when it is asked for."""
    return f"<details><summary>{escape(summary)}</summary>\n{body}</details>"
