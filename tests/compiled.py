"""What several test processes need compiled, compiled once."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def alone_in(name: str, factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that all workers of a test run share, for one worker at a time: what one leaves the next one finds."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
