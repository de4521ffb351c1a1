"""`fastssl eval` as a user types it: a run, a timm model, folders with and without labels, and every wrong word."""

import json

import pytest
import torch
import yaml
from drawn_pictures import draw
from PIL import Image

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")
from fastssl.cli import main
from fastssl.evaluate import cache
from fastssl.methods import SimCLR

_QUICK = ["--linear.steps=20", "--kmeans.starts=1", "--map.points=30", "--device=cpu"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run that was never trained, with its checkpoint and configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = dict(backbone="test_resnet", size=32, out_dim=8, blur=0.0, temperature=0.2)
    torch.manual_seed(3)
    method = SimCLR(**model, num_classes=19)
    folder = tmp_path / "runs" / "tiny" / "1"
    folder.mkdir(parents=True)
    kept = {
        "state_dict": method.state_dict(),
        "hyper_parameters": dict(method.hparams),
        "fastssl": {"method": "simclr", "version": "0"},
    }
    torch.save(kept, folder / "last.ckpt")
    recipe = {
        "seed": 3,
        "model": model,
        "data": {"class_path": "fastssl.data.Photos", "init_args": {"batch_size": 16, "size": 32, "per_picture": 3}},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "devices": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_a_run_is_measured_beside_its_lines_and_again_from_the_cache(run, capsys, monkeypatch):
    assert main(["eval", str(run), *_QUICK]) == 0
    shown = capsys.readouterr().out
    for words in ("raw pixels", "untrained encoder", "untrained, calibrated", "trained encoder", "k-NN %", "NMI"):
        assert words in shown
    results = results_of(run / "eval" / "1")
    assert results["encoder"] == "SimCLR test_resnet" and results["seed"] == 3 and results["size"] == 32
    assert results["architecture"] == {"name": "test_resnet", "stem": "timm", "kwargs": {}}
    assert results["data"]["class_path"] == "fastssl.data.Photos"
    assert list(results["lines"]) == ["pixels", "untrained", "untrained_calibrated", "trained"]
    for line, spaces in results["lines"].items():
        assert list(spaces) == (["h", "z"] if line == "trained" else ["h"])
        for values in spaces.values():
            assert set(values) == {"knn", "linear", "nmi", "ari", "matched"}
            assert all(-1 <= value <= 1 for value in values.values())
    # It was never trained: the seed of the run gives the same weights again.
    assert results["lines"]["trained"]["h"] == results["lines"]["untrained"]["h"]
    details = results["details"]["trained"]["h"]
    assert list(details["knn"]) == ["10", "20"] and details["knn"]["20"] == results["lines"]["trained"]["h"]["knn"]
    assert str(details["linear"]["lr"]).rstrip("0") and len(details["linear"]["validation"]) == 13

    page = (run / "eval" / "1" / "index.html").read_text()
    assert "trained encoder" in page
    assert {path.name for path in (run / "eval" / "1").glob("map_*.png")} == {"map_tsne.png", "map_tsne_z.png"}

    def refuse(*_):
        raise AssertionError("an encoder ran")

    monkeypatch.setattr(cache, "extract_both", refuse)
    assert main(["eval", str(run / "last.ckpt"), *_QUICK]) == 0
    assert results_of(run / "eval" / "2")["lines"] == results["lines"]


def test_training_tasks_and_a_supervised_line(run, capsys):
    options = ["--finetune.epochs=1", "--semi.epochs=1", "--semi.min_steps=2", "--supervised", "train"]
    status = main(["eval", str(run), "--tasks", "semi", "finetune", "knn", "--out", "measured", *options, *_QUICK])
    assert status == 0
    results = results_of(run.parent.parent.parent / "measured")
    assert results["tasks"] == ["knn", "finetune", "semi"]
    semi = {"semi_1", "semi_1_linear", "semi_10", "semi_10_linear"}
    assert set(results["lines"]["trained"]["h"]) == {"knn", "finetune"} | semi
    assert set(results["lines"]["untrained"]["h"]) == {"knn", "finetune"} | semi
    linear = {"semi_1_linear", "semi_10_linear"}
    assert set(results["lines"]["trained"]["z"]) == set(results["lines"]["supervised"]["h"]) == {"knn"} | linear
    assert results["details"]["trained"]["h"]["semi_1"] == {"labels": 19}  # one per class at least
    supervised = run.parent.parent.parent / "measured" / "supervised"
    assert (supervised / "last.ckpt").is_file()
    recipe = yaml.safe_load((supervised / "config.yaml").read_text())
    assert recipe["model"]["backbone"] == "test_resnet" and recipe["model"]["blur"] == 0
    assert recipe["data"]["init_args"]["per_picture"] == 3 and recipe["trainer"]["max_epochs"] == 1
    capsys.readouterr()
    given = ["--supervised", str(supervised), "--lines", "supervised", "--tasks", "knn"]
    assert main(["eval", str(run), *given, *_QUICK]) == 0
    again = results_of(run / "eval" / "1")["lines"]
    assert again == {"supervised": {"h": {"knn": results["lines"]["supervised"]["h"]["knn"]}}}


def test_a_timm_model_without_weights_is_the_untrained_line(run, capsys):
    words = [
        "--data",
        "photos",
        "--data.per_picture",
        "2",
        "--data.size",
        "32",
        "--size",
        "32",
        "--tasks",
        "knn",
        "--seed",
        "3",
    ]
    assert main(["eval", "test_resnet", *words, *_QUICK]) == 0
    (folder,) = (run.parent.parent / "eval" / "test_resnet").iterdir()
    results = results_of(folder)
    assert list(results["lines"]) == ["pixels", "untrained", "untrained_calibrated"]
    assert results["encoder"] == "test_resnet, untrained"


def test_pictures_without_labels_have_a_map(run, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    for number in range(60):
        Image.fromarray(draw(40, 50, number)).save(tmp_path / "pictures" / f"{number}.png")
    where = [
        "--data",
        "folder",
        "--data.root",
        str(tmp_path / "pictures"),
        "--data.num_workers=0",
        "--data.test_share=0.5",
    ]
    assert main(["eval", str(run), *where, *_QUICK]) == 0
    assert "the images have no labels: only map" in capsys.readouterr().out
    results = results_of(run / "eval" / "1")
    assert results["lines"] == {} and results["tasks"] == ["map"]
    assert (run / "eval" / "1" / "map_tsne.png").is_file()
    assert main(["eval", str(run), *where, "--tasks", "knn", "map", *_QUICK]) == 2
    assert "--tasks: knn needs labels, and Folder has none here; without labels: map, umap" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/tiny/2"], "there is no file or folder 'runs/tiny/2'; in 'runs/tiny', choose from 1"),
        (["resnet81", "--data", "photos"], "'resnet81' is no file, no folder and no timm model; did you mean"),
        (["resnet18"], "--data is needed, since 'resnet18' does not say on what: the name of a data set, photos"),
        (["runs/tiny/1", "--data", "photo"], "--data must be the name of a data set, got 'photo'; did you mean photos"),
        (["runs/tiny/1", "--data.per_pictur", "3"], "no option '--data.per_pictur'; did you mean --data.per_picture"),
        (["runs/tiny/1", "--task", "knn"], "no option '--task'; did you mean --tasks"),
        (["runs/tiny/1", "--tasks", "knn", "liner"], "--tasks: no 'liner'; did you mean linear?"),
        (["runs/tiny/1", "--tasks", "all", "liner"], "--tasks: no 'liner'; did you mean linear?"),
        (["runs/tiny/1", "--on", "y"], "--on: no 'y'; choose from h, z"),
        (["runs/tiny/1", "--lines", "pixel"], "--lines: no 'pixel'; did you mean pixels?"),
        (["runs/tiny/1", "--knn.k=[0]"], "knn: k must be one or more numbers of at least 1, got [0]"),
        (["runs/tiny/1", "--linear.steps=0"], "steps must be at least 1, got 0"),
        (["runs/tiny/1", "--semi.fractions=[2]"], "fractions must be above 0 and at most 1, got [2"),
        (["runs/tiny/1", "--finetune.optimizer=lamb"], "lamb"),
        (["runs/tiny/1", "--seed=-1"], "--seed must be in [0, 2^32), got -1"),
        (["runs/tiny/1", "--device=warp"], "--device warp: "),
        (["runs/tiny/1", "--size=0"], "--size must be at least 1, got 0"),
        (["runs/tiny/1", "--supervised", "runs/tiny/7"], "--supervised: there is no file or folder 'runs/tiny/7'"),
        (["runs/tiny/1", "--out", "runs"], "--out must be a new or empty folder, 'runs' holds something"),
        (["runs/tiny/1", "--pretrained"], "pretrained goes with the name of a timm model"),
        (
            ["test_resnet", "--data", "photos", "--supervised", "train"],
            "--supervised train needs the folder of a run, which says how to train; 'test_resnet' is none",
        ),
        (["test_resnet", "--data", "photos", "--on", "z"], "--on z: test_resnet has no projection"),
        (
            ["test_resnet", "--data", "photos", "--tasks", "semi", "--semi.head_layers", "1"],
            "--semi.head_layers 1: test_resnet has no projection",
        ),
        (["--tasks", "knn", "runs/tiny/1"], "the source comes first: fastssl eval SOURCE [options], got '--tasks'"),
    ],
)
def test_a_wrong_word_gives_one_line_and_leaves_nothing(run, arguments, message, capsys):
    before = sorted(run.parent.parent.rglob("*"))
    assert main(["eval", *arguments]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.startswith("fastssl eval: ") and shown.err.count("\n") == 1
    assert sorted(run.parent.parent.rglob("*")) == before


def test_a_damaged_checkpoint_gives_one_line(run, capsys):
    (run / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes()[:1000])
    assert main(["eval", str(run)]) == 2
    assert "is no checkpoint that PyTorch can read" in capsys.readouterr().err


def test_umap_without_its_package_gives_one_line(run, capsys, monkeypatch):
    import fastssl.cli.eval as command

    find = command.find_spec
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "umap" else find(name))
    assert main(["eval", str(run), "--tasks", "umap"]) == 1
    assert capsys.readouterr().err == 'fastssl eval: a UMAP map needs umap-learn: pip install "fastssl[umap]"\n'


def test_unknown_labels_only_are_named(run, capsys, monkeypatch):
    from fastssl.data import Photos

    setup = Photos.setup

    def forget(self, stage=None):
        setup(self, stage)
        self.test.labels.fill_(-1)

    monkeypatch.setattr(Photos, "setup", forget)
    assert main(["eval", str(run), "--tasks", "knn", "--device=cpu"]) == 2
    assert "no test image of Photos has a label; a map needs none" in capsys.readouterr().err


def test_help_is_there(capsys):
    assert main(["eval"]) == 0
    assert "usage: fastssl eval SOURCE" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["eval", "resnet18", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for words in ("--finetune.layer_decay", "--semi.fractions", "--knn.temperature", "--supervised", "--map.points"):
        assert words in shown
