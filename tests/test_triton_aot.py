"""Every shipped tile compiles for every architecture, uses its tensor cores and does not spill; no GPU is needed."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")
# Compiling is left to processes of their own: this one may have imported Triton as an interpreter.
PROGRAM = """
import sys
from fastssl.kernels import aot

def main():
    capability = int(sys.argv[1])
    jobs = [(variant, capability) for variant in aot.shipped_variants(capability // 10)]
    for (variant, _), line in zip(jobs, aot.reports(jobs, workers=2)):
        print(line)
        if line.spills:
            print("FAILED: spills to local memory")
        if variant.tensor_cores and line.tensor_core_instructions == 0:
            print("FAILED: no tensor-core instructions")

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_shipped_tiles_use_tensor_cores_and_do_not_spill(capability, tmp_path):
    program = tmp_path / "report.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, str(program), str(capability)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    assert f"sm_{capability}" in result.stdout
    assert "FAILED" not in result.stdout, result.stdout
