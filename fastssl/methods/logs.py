"""Where a run writes its metrics: `metrics.csv` and TensorBoard's event files, both continued with the run."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from fastssl.methods.checkpoint import OutputError

Row = dict[str, Any]


def make_loggers(out: str | Path, resumed_from: str | Path | None = None, step: int = 0) -> list[Logger]:
    """Loggers of a run; process 0 writes.

    The rows of a run that is continued stay in `metrics.csv`, or come there from the folder of its checkpoint. Those of
    steps that are made again since the checkpoint is older go to `discarded-1.csv`, `discarded-2.csv` and so on.

    Args:
        out: folder of the run.
        resumed_from: checkpoint that the run continues from.
        step: number of steps that were made when it was written.
    """
    out = Path(out)
    same = resumed_from is not None and out.resolve() == Path(resumed_from).resolve().parent
    if resumed_from is not None:
        _continue_rows(Path(resumed_from).parent, out, step)
    return [MetricsFile(out), EventFiles(out, step if same else None)]


class MetricsFile(Logger):
    """Rows of `metrics.csv`, each on the disk as soon as it is logged.

    Columns are `epoch`, `step` (of the optimizer, from 0 on) and the metrics in the order in which they appeared.

    Args:
        folder: of the run. Rows that its file holds already stay.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        """Nothing: the folder is the run's."""
        return ""

    @property
    def version(self) -> str:
        """Nothing: the folder is the run's."""
        return ""

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row.

        Raises:
            OutputError: if it cannot be written.
        """
        values = {name: v.item() if isinstance(v, Tensor) else v for name, v in metrics.items()}
        row = {"epoch": "", "step": step, **values}
        with _writing(self.path):
            if self._columns is None:
                self._columns = read_rows(self.path)[0]
            if new := [name for name in row if name not in self._columns]:
                self._columns += new
                _write_rows(self.path, read_rows(self.path)[1], self._columns)
            with open(self.path, "a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: they are in config.yaml."""


class EventFiles(TensorBoardLogger):
    """TensorBoard's event files in the run's folder.

    Args:
        folder: of the run.
        step: where a continued run begins: TensorBoard no longer shows what was logged from this step on.
    """

    def __init__(self, folder: str | Path, step: int | None = None) -> None:
        super().__init__(str(folder), name="", version="", default_hp_metric=False, purge_step=step)

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log values.

        Raises:
            OutputError: if they cannot be written.
        """
        with _writing(self.log_dir):
            try:
                super().log_metrics(metrics, step)
            except ValueError as error:  # Lightning's answer to any failure
                if isinstance(error.__cause__, OSError):
                    raise error.__cause__ from None
                raise

    @rank_zero_only
    def save(self) -> None:
        """Write what is waiting, and no file of hyperparameters: they are in config.yaml."""
        with _writing(self.log_dir):
            self.experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file."""
        try:
            if self._experiment is not None:
                self.experiment.close()
        except OSError:
            if status == "success":  # else the reason is on its way already, most likely the same
                raise


@contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def read_rows(path: Path) -> tuple[list[str], list[Row], str]:
    """Columns, rows and what follows the last whole line of a file of metrics; nothing where there is no file.

    A process that is killed leaves a part of a line.
    """
    if not path.exists():
        return [], [], ""
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(whole.splitlines())
    return list(reader.fieldnames or []), list(reader), text[len(whole) :]


def _write_rows(path: Path, rows: Iterable[Row], columns: list[str]) -> None:
    """Write a whole file, or leave it as it was."""
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


@rank_zero_only
def _continue_rows(before: Path, out: Path, step: int) -> None:
    with _writing(out):
        columns, rows, rest = read_rows(before / "metrics.csv")
        again = [row for row in rows if int(row["step"]) >= step]
        if before.resolve() == out.resolve():
            if not again and not rest:
                return
            part = 1
            while (discarded := out / f"discarded-{part}.csv").exists():
                part += 1
            _write_rows(discarded, again, columns)
        if columns:
            _write_rows(out / "metrics.csv", [row for row in rows if int(row["step"]) < step], columns)
