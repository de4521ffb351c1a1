"""What a run leaves to look at: pictures, tables, and a page that opens without a server. Needs the training extra."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastssl.report.reports import eval_report, fit_report

__all__ = ["eval_report", "fit_report"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("fastssl.report.reports"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
