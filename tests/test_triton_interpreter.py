"""The Triton kernels compute the right thing, shown without a GPU by Triton's interpreter.

The interpreter is chosen when Triton is imported, for the whole process: the statements live in ``triton_*_checks.py``,
a file per family of operations, each of which this test runs in a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


CHECKS = sorted(Path(__file__).parent.glob("triton_*_checks.py"))


@pytest.mark.parametrize("which", ["not exhaustive", pytest.param("exhaustive", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("checks", CHECKS, ids=lambda path: path.stem)
def test_kernels_agree_with_float64_under_the_interpreter(checks, which):
    if which == "exhaustive" and "pytest.mark.exhaustive" not in checks.read_text():
        pytest.skip("all of them run by default")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", str(checks)]
    command += ["-m", which]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
