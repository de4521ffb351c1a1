"""The examples run as a user types them, and do what they say."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import commands
import pytest

pytest.importorskip("lightning")

_FOLDER = Path(__file__).parent.parent / "examples"


def run(*command, cwd):
    done = commands.run(*command, cwd=cwd, threads=1)
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(text):
    return [float(number) for number in re.findall(r"loss (-?\d+\.\d+)", text)]


def test_a_plain_loop_learns(tmp_path):
    arguments = ["--steps", "12", "--batch_size", "32", "--per_picture", "20"]
    printed = run(str(_FOLDER / "plain_loop.py"), *arguments, cwd=tmp_path)
    first, *_, last = losses(printed)
    assert math.log(63) - 1 < first < math.log(63) + 0.5  # one positive among 63 candidates, nothing learned yet
    assert last < first
    accuracy, chance = (float(number) for number in re.findall(r"(\d+\.\d)%", printed))
    assert accuracy > 8 * chance


def test_a_lightning_module_of_ones_own_trains(tmp_path):
    printed = run(str(_FOLDER / "lightning_module.py"), "--steps", "4", "--batch_size", "16", cwd=tmp_path)
    loss, spread = re.search(r"after 4 steps: loss (-?[\d.]+), spread ([\d.]+)", printed).groups()
    assert -1 < float(loss) < 0.5 and float(spread) > 0.1
    assert not list(tmp_path.iterdir())


def test_dino_in_a_plain_loop(tmp_path):
    arguments = ["--steps", "3", "--batch_size", "8", "--prototypes", "256"]
    printed = run(str(_FOLDER / "dino_loop.py"), *arguments, cwd=tmp_path)
    assert len(losses(printed)) == 2 and all(0 < loss < math.log(256) + 1 for loss in losses(printed))
    assert all(1 < int(used) <= 256 for used in re.findall(r"about (\d+) prototypes", printed))


def test_two_processes_share_negatives_and_keep_the_same_weights(tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(_FOLDER / "ddp_torchrun.py"), "--steps", "2", "--batch_size", "8"],
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    assert "2 processes, 16 images per step, 30 negatives for each view" in printed
    assert math.log(31) - 1 < losses(printed)[0] < math.log(31) + 0.5
    assert "largest difference between the weights of processes: 0\n" in printed


def test_without_torchrun_one_line_says_how_to_start_it(tmp_path):
    done = commands.run(str(_FOLDER / "ddp_torchrun.py"), cwd=tmp_path)
    assert done.returncode == 2 and "start it by torchrun --nproc-per-node=2" in done.stderr


def test_every_example_is_described_and_tested():
    examples = {path.name for path in _FOLDER.glob("*.py")}
    assert set(re.findall(r"^\| \[(\w+\.py)\]\(\1\)", (_FOLDER / "README.md").read_text(), re.M)) == examples
    assert set(re.findall(r'_FOLDER / "(\w+\.py)"', Path(__file__).read_text())) == examples
