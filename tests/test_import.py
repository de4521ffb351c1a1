"""Importing fastssl is cheap and needs nothing that a user may not have."""

from __future__ import annotations

import json
import subprocess
import sys

PROBE = """
import json, sys, time
import torch
start = time.perf_counter()
import fastssl, fastssl.augment, fastssl.functional, fastssl.losses
seconds = time.perf_counter() - start
extras = ["lightning", "pytorch_lightning", "jsonargparse", "timm", "torchmetrics", "torchvision", "sklearn", "skimage",
          "matplotlib", "rich", "lightly", "psutil"]
print(json.dumps({
    "seconds": seconds,
    "cuda": torch.cuda.is_initialized(),
    "extras": [name for name in extras if name in sys.modules],
}))
"""


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_touches_no_cuda_needs_no_extra_and_is_quick():
    found = json.loads(run(PROBE))
    assert not found["cuda"]
    assert found["extras"] == []
    assert found["seconds"] < 1.0


def test_the_package_itself_does_not_import_torch():
    assert run("import sys, fastssl; print('torch' in sys.modules, fastssl.__version__)").split()[0] == "False"


def test_everything_public_is_there():
    code = "import fastssl; print([getattr(fastssl, name) is not None for name in fastssl.__all__])"
    assert "False" not in run(code)
