"""The command line as a user types it: help, a tiny run, a stop and its continuation, and every wrong word."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import commands
import pytest
import torch
import yaml
from drawn_pictures import make_folder

import fastssl
from fastssl.cli import COMMANDS, UsageError, fit, main

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")
from fastssl.cli import method

_SCRIPT = Path(sys.executable).with_name("fastssl")
_PROGRAM = [str(_SCRIPT)] if _SCRIPT.exists() else [sys.executable, "-c", "from fastssl.cli import main; exit(main())"]
_TINY = ["--trainer.max_epochs", "1", "--data.per_picture", "2", "--data.batch_size", "16", "--trainer.accelerator=cpu"]


def fastssl_command(*arguments, cwd, **options):
    return subprocess.run([*_PROGRAM, *arguments], cwd=cwd, capture_output=True, text=True, timeout=240, **options)


@pytest.mark.parametrize("arguments", [["--help"], [], ["-h"], ["fit", "--help"], ["--version"], ["nonsense"]])
def test_help_needs_neither_torch_nor_an_extra(arguments):
    blocked = ["torch", "numpy", "lightning", "jsonargparse", "torchvision", "timm"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"  # None there makes their import fail
        f"from fastssl.cli import main; sys.exit(main({arguments!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == (2 if arguments == ["nonsense"] else 0), done.stderr
    assert "Traceback" not in done.stderr
    if arguments in ([], ["-h"], ["--help"]):
        for command, line in COMMANDS.items():
            assert f"{command} " in done.stdout and line in done.stdout


def test_every_command_has_its_module():
    import importlib

    for command in COMMANDS:
        assert callable(importlib.import_module(f"fastssl.cli.{command}").main)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastssl {fastssl.__version__}\n"


def test_a_tiny_run_leaves_table_log_checkpoint_and_results(tmp_path, monkeypatch, capsys):
    done = fastssl_command(
        "fit", "simclr", *_TINY, "--seed", "1", "--model.size", "32", "--model.lr=0.002", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for words in ("raw pixels", "untrained encoder", "trained encoder", "images/s", "peak memory", "epoch 1/1"):
        assert words in done.stdout
    out = tmp_path / "runs" / "simclr_photos" / "1"
    results = json.loads((out / "results.json").read_text())
    assert results["seed"] == 1
    assert results["epochs"] == 1
    assert results["images_per_second"] > 0
    assert results["peak_memory_bytes"] > 1e8
    for line in ("pixels", "untrained", "untrained_calibrated", "trained"):
        assert all(0 < results["accuracy"][line][kind] <= 1 for kind in ("knn", "linear"))
    assert (out / "last.ckpt").stat().st_size > 1e6
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["model"]["lr"] == 0.002
    assert config["data"]["init_args"]["per_picture"] == 2

    # The configuration that it wrote can be given again, and the run can be continued.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["fit", "simclr", "--config", str(out / "config.yaml"), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)["model"]
    assert {name: value for name, value in printed.items() if value is not None} == config["model"]
    assert main(["fit", "simclr", "--resume", str(out / "last.ckpt"), "--trainer.max_epochs", "2"]) == 0
    printed = capsys.readouterr().out
    assert "epoch 2/2" in printed and "epoch 1/" not in printed
    assert json.loads((out / "results.json").read_text())["epochs"] == 2
    with open(out / "metrics.csv") as file:
        assert {row["epoch"] for row in csv.DictReader(file)} == {"0", "1"}
    assert not list(out.glob("discarded*"))  # no step was made twice

    # A checkpoint that does not fit is refused before anything is changed.
    for change, message in (
        ("--model.out_dim=7", "is of another model: projection.3.bias is [128] in the file and [7] in this run"),
        ("--model.optimizer=sgd", "was trained with the optimizer adamw, this run has sgd"),
    ):
        assert main(["fit", "simclr", "--resume", str(out / "last.ckpt"), change]) == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1 and str(out / "last.ckpt") in printed and message in printed
    assert not list(out.glob("discarded*"))

    # A folder with something in it is not written over.
    assert main(["fit", "simclr", *_TINY, "--out", str(out)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "--out must be a new or empty folder" in printed


def test_another_data_set_brings_its_own_options(tmp_path):
    """Those of the configuration's data set that mean something else, such as the size of its windows, go with it."""
    for word in ("folder", "Folder", "fastssl.data.Folder"):
        cli, label = method.parse("fit", "simclr", ["--data", word, f"--data.root={make_folder(tmp_path / word)}"])
        options = cli.config.data.init_args
        assert (label, options.size, options.batch_size) == ("simclr_photos", 448, 64)
    cli, _ = method.parse("fit", "simclr", ["--data", "photos", "--data.per_picture", "2"])
    assert (cli.config.data.init_args.size, cli.config.data.init_args.per_picture) == (64, 2)


def test_a_checkpoint_is_tested_as_in_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "simclr", *_TINY, "--model.size=32", "--trainer.check_val_every_n_epoch=1", "--out=run"]) == 0
    trained = json.loads(Path("run/results.json").read_text())["logged"]
    capsys.readouterr()
    for given in ("run", "run/last.ckpt"):
        assert main(["test", "simclr", "--checkpoint", given, "--out=tested", "--trainer.accelerator=cpu"]) == 0
        printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
        results = json.loads(Path("tested/results.json").read_text())
        for name in ("knn", "probe", "h_rank"):
            assert results[name] == pytest.approx(trained[name], rel=1e-3) == pytest.approx(float(printed[name]), 1e-3)
    for arguments, message in (
        (["simclr"], "checkpoint"),
        (["simclr", "--checkpoint", "rn"], "there is no file 'rn'"),
        (["dino", "--checkpoint", "run"], "'run/last.ckpt' is of the method 'simclr'; fastssl test simclr"),
        (["simcl"], "no method 'simcl'; did you mean simclr or simclrv2 or simmim?"),
    ):
        assert main(["test", *arguments]) == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1 and message in printed, printed


def test_ones_own_pictures_of_different_sizes_train(tmp_path):
    root = make_folder(tmp_path / "pictures")
    options = ["--data=fastssl.data.Folder", f"--data.root={root}", "--data.batch_size=5", "--trainer.max_epochs=1"]
    options += ["--model.size=32", "--model.knn_k=3", "--trainer.accelerator=cpu", f"--data.cache_dir={tmp_path}"]
    (root / "train" / "cat" / "deeper" / "2.jpg").write_text("no picture")
    done = commands.run("fit", "simclr", *options, "--data.on_error=raise", "--out=first", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "fastssl fit simclr: Folder: cannot read " in done.stderr
    assert "2.jpg: it is no picture of a known format; --data.on_error=skip takes another" in done.stderr
    done = commands.run("fit", "simclr", *options, "--data.cache=disk", "--out=second", cwd=tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "decoding 10 pictures into " in done.stderr and "2.jpg" in done.stderr
    assert "10 training images, 6 test images of 2 classes" in done.stdout
    done = commands.run("fit", "simclr", *options, "--data.cache_dir=/dev/null/x", "--data.cache=disk", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "Folder: cannot write the cache /dev/null/x/" in done.stderr


def test_two_processes_train_together(tmp_path):
    arguments = ["--trainer.devices=2", "--trainer.strategy=ddp", "--model.size=32", "--out=run"]
    done = fastssl_command("fit", "simclr", *_TINY, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained encoder") == 2  # "untrained encoder" and "trained encoder", from one process
    row = next(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    # 16 images in each of two processes: one positive and 62 negatives.
    assert float(row["mi_bound"]) + float(row["loss"]) == pytest.approx(math.log(63), abs=1e-4)


@pytest.mark.exhaustive
def test_torchrun_does_not_write_over_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.ckpt").write_text("precious")
    command = [sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node=2", *_PROGRAM]
    arguments = ["fit", "simclr", *_TINY, "--trainer.devices=2", "--trainer.strategy=ddp", "--out=run"]
    done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode != 0
    assert "fastssl fit simclr: --out must be a new or empty folder, 'run' holds something" in done.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["last.ckpt"]
    assert (tmp_path / "run" / "last.ckpt").read_text() == "precious"


def test_processes_of_torchrun_that_would_each_train_alone_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    method.check_processes(1)  # WORLD_SIZE alone means nothing
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    method.check_processes(2)
    with pytest.raises(UsageError, match="must be 2, the number of processes that torchrun started, got 1"):
        method.check_processes(1)


def test_output_folders_are_new_or_those_of_the_run_continued(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def folder(*arguments):
        cli, label = method.parse("fit", "simclr", list(arguments))
        return str(fit.make_output_folder(cli.config, label))

    assert folder() == "runs/simclr_photos/1"
    assert folder() == "runs/simclr_photos/2"
    assert folder("--out=a/b") == folder("--out=a/b") == "a/b"  # still empty
    Path("a/b/last.ckpt").touch()
    Path("c").mkdir()
    Path("c/last.ckpt").touch()
    assert folder("--resume=a/b/last.ckpt") == folder("--resume=a/b/last.ckpt", "--out=a/b") == "a/b"
    for arguments in (["--out=c"], ["--out=c", "--resume=a/b/last.ckpt"]):
        with pytest.raises(UsageError, match="--out must be a new or empty folder, 'c' holds something"):
            folder(*arguments)
    with pytest.raises(UsageError, match=r"--out: cannot make 'c/last\.ckpt/d'"):
        folder("--out=c/last.ckpt/d")


def test_no_arguments_at_all_are_the_default_configuration():
    cli, label = method.parse("fit", "simclr", [])
    config = cli.config
    assert (label, config.seed, config.out, config.resume) == ("simclr_photos", 0, None, None)
    assert config.trainer.sync_batchnorm  # where several GPUs train


def test_batch_norm_is_synchronised_with_its_activation():
    import timm

    model = torch.nn.ModuleDict(
        {
            "backbone": timm.create_model("efficientnet_b0", num_classes=0),  # BatchNorm and SiLU in one module
            "projection": torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)),
        }
    ).eval()
    x = torch.randn(2, 3, 32, 32)
    expected, names = model["backbone"](x), list(model.state_dict())
    method.synchronise_batch_norm(model)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 10 and all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)
    assert list(model.state_dict()) == names
    assert torch.equal(model["backbone"](x), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a checkpoint", "is no checkpoint that PyTorch can read"),
        (b"", "is no checkpoint that PyTorch can read"),
        (torch.ones(3), "is no checkpoint of a training run: it lacks state_dict, "),
        ({"state_dict": {}}, "is no checkpoint of a training run: it lacks hyper_parameters, "),
    ],
)
def test_a_broken_checkpoint_gives_one_line_with_its_name(content, message, tmp_path, capsys):
    path = tmp_path / "last.ckpt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    assert main(["fit", "simclr", *_TINY, "--resume", str(path)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and f"--resume: '{path}' {message}" in printed
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent as a POSIX signal")
def test_ctrl_c_leaves_a_checkpoint(tmp_path):
    arguments = ["fit", "simclr", *_TINY, "--trainer.max_epochs=500", "--model.size=32", "--out=run"]
    process = commands.Command(*arguments, "--trainer.log_every_n_steps=1", cwd=tmp_path)
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "continue with: fastssl fit simclr --resume run/last.ckpt" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "run" / "last.ckpt").exists()
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert {"loss", "mi_bound", "images/s", "step"} <= set(rows[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fti"], "fastssl: no command 'fti'; did you mean fit?"),
        (["--verson"], "fastssl: no option '--verson'; did you mean --version?"),
        (["fit", "simlcr"], "fastssl fit: no method 'simlcr'; did you mean simclr or simclrv2 or simmim?"),
        (["fit", "xyz"], "fastssl fit: no method 'xyz'; choose from simclr"),
        (["fit", "simclr", "--config", "simclr_foto"], "no configuration and no file 'simclr_foto'; did you mean sim"),
        (["fit", "simclr", "--resume", "no.ckpt"], "--resume must be a checkpoint, there is no file 'no.ckpt'"),
        (["fit", "simclr", "--seed", "-1"], "fastssl fit simclr: --seed must be in [0, 2^32), got -1"),
        (["fit", "simclr", f"--seed={2**32}"], "--seed must be in [0, 2^32), got 4294967296"),
        (["fit", "simclr", "--model.bakbone", "x"], "no option '--model.bakbone'; did you mean --model.backbone"),
        (["fit", "simclr", "--data.batchsize=3"], "no option '--data.batchsize'; did you mean --data.batch_size"),
        (["fit", "simclr", "--model.backbone", "resnet81"], "got 'resnet81'; did you mean resnet"),
        (["fit", "simclr", "--model.lr", "fast"], "\"model.lr\": Expected a <class 'float'>. Got value: fast"),
        (["fit", "simclr", "--model.temperature", "0"], "temperature must be"),
        (["fit", "simclr", "--data.per_picture", "0"], "per_picture must be at least 1, got 0"),
        (["fit", "simclr", "--data.batch_size", "100000"], "batch_size must be at most"),
        (["fit", "simclr", "--trainer.accelerator", "cup"], "trainer: "),
    ],
)
def test_a_wrong_word_gives_one_clear_line_and_status_2(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_gives_one_line(capsys, monkeypatch):
    monkeypatch.setattr(fit, "EXTRA", ("lightning", "no_such_module"))
    assert main(["fit", "simclr"]) == 1
    printed = capsys.readouterr().err
    assert 'fastssl fit needs the training extra: pip install "fastssl[train]"' in printed
    assert "no_such_module" in printed
    assert printed.count("\n") == 1


def test_help_of_a_method_comes_from_its_docstrings(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "simclr", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "tau of NT-Xent." in text
    assert "timm name of the encoder." in text
    assert "default: resnet10t" in text
