"""The Triton kernels compute the right thing, shown without a GPU by Triton's interpreter.

The interpreter is chosen when Triton is imported, for the whole process: the statements live in
``triton_interpreter_checks.py``, which this test runs in a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_kernels_agree_with_float64_under_the_interpreter():
    checks = Path(__file__).with_name("triton_interpreter_checks.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", str(checks)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
