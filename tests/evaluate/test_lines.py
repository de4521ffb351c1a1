"""The lines that an encoder is compared with, and what fit reports of them."""

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("timm")
from fastssl.data import Photos
from fastssl.evaluate import extract, knn_accuracy, linear_accuracy, pixels
from fastssl.evaluate.lines import evaluate_fit, lines_of, untrained_like
from fastssl.methods import SimCLR
from fastssl.models.backbones import create_backbone
from fastssl.models.encoder import Architecture, Encoder

_VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2}


def photos():
    data = Photos(batch_size=32, size=32, per_picture=2)
    data.setup()
    return data


def method(**options):
    torch.manual_seed(0)
    return SimCLR(**(dict(backbone="test_resnet", size=32, num_classes=19, out_dim=8, knn_k=5) | options))


def test_fit_reports_every_line_as_measured_alone():
    data, model = photos(), method()
    torch.manual_seed(1)
    untrained = create_backbone("test_resnet")
    accuracy, features = evaluate_fit(model, untrained, data, "cpu")
    assert list(accuracy) == ["pixels", "untrained", "untrained_calibrated", "trained"]
    encoder = model.encoder()
    bank, test = (extract(encoder, encoder.transform, b) for b in (data.bank_dataloader(), data.test_dataloader()))
    assert torch.equal(features["bank"].x, bank.x) and torch.equal(features["test"].x, test.x)
    assert accuracy["trained"] == {"knn": knn_accuracy(bank, test, 19, 5), "linear": linear_accuracy(bank, test, 19)}
    raw = [pixels(batches) for batches in (data.bank_dataloader(), data.test_dataloader())]
    assert accuracy["pixels"]["knn"] == knn_accuracy(*raw, 19, 5)
    assert int(untrained.bn1.num_batches_tracked) == 0  # the calibrated one is a copy


def test_images_without_labels_give_features_and_no_accuracy():
    data, model = photos(), method()
    data.test.labels.fill_(-1)
    accuracy, features = evaluate_fit(model, create_backbone("test_resnet"), data, "cpu")
    assert accuracy == {}
    assert len(features["test"].x) == len(data.test)
    data.class_names = []
    assert evaluate_fit(method(num_classes=0), create_backbone("test_resnet"), data, "cpu")[0] == {}


def test_images_of_unknown_label_are_left_out_of_the_accuracy():
    data, model, untrained = photos(), method(), create_backbone("test_resnet")
    whole = evaluate_fit(model, untrained, data, "cpu")[0]
    for half in (data.train, data.test):
        half.images = torch.cat([half.images, 255 - half.images])
        half.labels = torch.cat([half.labels, torch.full_like(half.labels, -1)])
    again = evaluate_fit(model, untrained, data, "cpu")[0]
    assert again["trained"] == pytest.approx(whole["trained"], abs=0.03)
    assert again["pixels"] == pytest.approx(whole["pixels"], abs=0.03)


def test_a_transformer_has_nothing_to_calibrate():
    data, model = photos(), method(backbone="vit_tiny_patch16_224", backbone_args=_VIT)
    untrained = create_backbone("vit_tiny_patch16_224", "timm", _VIT)
    assert list(evaluate_fit(model, untrained, data, "cpu")[0]) == ["pixels", "untrained", "trained"]


def test_the_untrained_encoder_has_the_weights_before_training():
    model = method()
    below = untrained_like(model.encoder(), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(below.backbone.parameters(), model.backbone.parameters(), strict=True))
    state = torch.get_rng_state()
    other = untrained_like(model.encoder(), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(other.backbone.conv1[0].weight, model.backbone.conv1[0].weight)


def test_lines_are_those_that_there_are():
    data = photos()
    encoder = Encoder(create_backbone("test_resnet"), Architecture("test_resnet"), 32)
    assert list(lines_of(encoder, data, seed=0)) == ["pixels", "untrained", "untrained_calibrated", "trained"]
    lines = lines_of(encoder, data, seed=0, trained=False, supervised=encoder)
    assert list(lines) == ["pixels", "untrained", "untrained_calibrated", "supervised"]
    assert lines["pixels"] is None
    before = encoder.backbone.bn1.running_mean.clone()
    calibrated = lines["untrained_calibrated"]()
    assert torch.equal(calibrated.backbone.conv1[0].weight, encoder.backbone.conv1[0].weight)
    assert not torch.equal(calibrated.backbone.bn1.running_mean, before)
    assert torch.equal(encoder.backbone.bn1.running_mean, before)
