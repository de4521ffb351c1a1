"""`simclr_cifar10` is lightly's benchmark: its numbers and network, and a few steps on files like those of CIFAR-10."""

import json

import pytest
import torch
import yaml
from published_sets import write_cifar

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")
from fastssl.cli import main


def printed_config(capsys, *options):
    with pytest.raises(SystemExit) as ended:
        main(["fit", "simclr", "--config", "simclr_cifar10", *options, "--print_config"])
    assert not ended.value.code
    return yaml.safe_load(capsys.readouterr().out)


def test_the_configuration_has_the_numbers_of_the_benchmark(capsys):
    config = printed_config(capsys)
    expected = {
        "model": {
            **{"backbone": "resnet18", "stem": "small", "size": 32},
            **{"hidden_dim": 512, "out_dim": 128, "head_layers": 2, "temperature": 0.5},
            **{"min_scale": 0.08, "strength": 0.5, "blur": 0.0},
            **{"optimizer": "sgd", "lr": 0.06, "lr_batch_size": 128, "momentum": 0.9, "weight_decay": 5e-4},
            **{"nesterov": False, "head_final_norm": True},
            **{"warmup_epochs": 0, "final_lr": 0.0, "knn_k": 200, "knn_temperature": 0.1},
        },
        "trainer": {"max_epochs": 200, "check_val_every_n_epoch": 1},
    }
    assert {name: config["model"][name] for name in expected["model"]} == expected["model"]
    assert config["data"]["class_path"] == "fastssl.data.CIFAR10"
    assert {"batch_size": 128, "download": False}.items() <= config["data"]["init_args"].items()
    assert expected["trainer"].items() <= config["trainer"].items()
    larger = printed_config(capsys, "--data.batch_size=512", "--trainer.max_epochs=800")
    assert larger["data"]["init_args"]["batch_size"] == 512 and larger["trainer"]["max_epochs"] == 800


def test_network_and_views_are_those_of_the_benchmark():
    models = pytest.importorskip("lightly.models")
    from lightly.models.modules import heads
    from lightly.transforms import SimCLRTransform as TheirTransform

    from fastssl.configs import path_of
    from fastssl.methods import SimCLR

    model = SimCLR(**yaml.safe_load(path_of("simclr_cifar10").read_text())["model"])

    def shapes(module):
        return sorted(tuple(p.shape) for p in module.parameters())

    theirs = models.ResNetGenerator("resnet-18")
    del theirs.linear
    assert shapes(model.backbone) == shapes(theirs)
    x = torch.randn(2, 3, 32, 32)
    assert model.backbone.forward_features(x).shape == (2, 512, 4, 4)
    assert all((module.weight == 1).all() for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    head = heads.SimCLRProjectionHead(512, 512, 128)
    assert [layer.out_features for layer in head.modules() if isinstance(layer, torch.nn.Linear)] == [512, 128]
    assert [tuple(p.shape) for p in model.projection.parameters()] == [tuple(p.shape) for p in head.parameters()]
    their_view = TheirTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0).transforms[0].transform.transforms
    theirs, ours = (
        {type(step).__name__: step for step in steps}
        for steps in (their_view, model.transform.transforms[0].transforms)
    )
    jitter = theirs["RandomApply"]
    assert jitter.p == ours["ColorJitter"].p
    theirs["ColorJitter"] = jitter.transforms[0]
    compared = {
        "RandomResizedCrop": ("size", "scale", "ratio"),
        "RandomHorizontalFlip": ("p",),
        "ColorJitter": ("brightness", "contrast", "saturation", "hue"),
        "RandomGrayscale": ("p",),
        "Normalize": ("mean", "std"),
    }
    for step, arguments in compared.items():
        for argument in arguments:
            assert tuple_of(getattr(ours[step], argument)) == tuple_of(getattr(theirs[step], argument)), (
                step,
                argument,
            )
    assert set(ours) == set(compared)  # whatever else they have happens with probability 0
    assert theirs["GaussianBlur"].prob == theirs["RandomRotate"].prob == theirs["RandomVerticalFlip"].p == 0


def tuple_of(value):
    return tuple(value) if isinstance(value, (list, tuple)) else value


def test_a_few_steps_on_files_in_the_format_of_cifar10(tmp_path, monkeypatch, capsys):
    write_cifar(tmp_path, monkeypatch, images=4)
    monkeypatch.chdir(tmp_path)
    options = ["--data.root", str(tmp_path), "--data.batch_size=8", "--model.knn_k=5", "--out=run"]
    status = main(
        ["fit", "simclr", "--config", "simclr_cifar10", *options, "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    )
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "20 training images, 4 test images of 10 classes" in printed.out
    assert json.loads((tmp_path / "run" / "results.json").read_text())["backbone"] == "resnet18"
    group = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"][0]
    assert group["initial_lr"] == pytest.approx(0.06 * 8 / 128) and group["momentum"] == 0.9


def test_without_the_files_one_line_says_where_they_would_come_from(tmp_path, capsys):
    status = main(["fit", "simclr", "--config", "simclr_cifar10", f"--data.root={tmp_path}"])
    assert status == 2
    assert capsys.readouterr().err == (
        f"fastssl fit simclr: CIFAR10: there is no {tmp_path}/cifar-10-batches-py; "
        "download=True (--data.download=true) fetches it from https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz\n"
    )


def test_a_data_set_without_its_folder_says_which_option_it_needs(capsys):
    assert main(["fit", "simclr", "--data", "cifar100"]) == 2
    assert capsys.readouterr().err == "fastssl fit simclr: this data set needs --data.root\n"
