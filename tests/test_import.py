"""Importing fastssl is cheap and needs nothing that a user may not have."""

from __future__ import annotations

import json
import subprocess
import sys

# What costs time is what is imported beside torch, so that is named here; a clock would tell of the machine.
PROBE = """
import json, sys
import numpy, torch
before = set(sys.modules)
import fastssl, fastssl.augment, fastssl.functional, fastssl.losses
new = set(sys.modules) - before
print(json.dumps({
    "cuda": torch.cuda.is_initialized(),
    "others": sorted({name.split(".")[0] for name in new} - set(sys.stdlib_module_names) - {"fastssl", "torch"}),
    "of_torch": sorted(name for name in new if name.startswith("torch.")),
    "parts": sorted({name.split(".")[1] for name in new if name.startswith("fastssl.")}),
}))
"""
PARTS = {"_extension", "_version", "augment", "backends", "distributed", "functional", "losses", "ops"}
HEAVY = {"torch._dynamo", "torch._inductor", "torch.onnx", "torch.distributed.fsdp"}


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_touches_no_cuda_needs_no_extra_and_is_quick():
    found = json.loads(run(PROBE))
    assert not found["cuda"]
    assert found["others"] == []
    assert not HEAVY & set(found["of_torch"])
    assert set(found["parts"]) <= PARTS


def test_the_package_itself_does_not_import_torch():
    assert run("import sys, fastssl; print('torch' in sys.modules, fastssl.__version__)").split()[0] == "False"


def test_everything_public_is_there():
    code = "import fastssl; print([getattr(fastssl, name) is not None for name in fastssl.__all__])"
    assert "False" not in run(code)
