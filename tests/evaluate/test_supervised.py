"""The supervised line: learns its labels, leaves unknown ones out, is a method like the others."""

import math

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("timm")
import lightning as L

from fastssl.data import Photos
from fastssl.methods import Supervised, load

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*logging interval"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


def small_model(**change):
    torch.manual_seed(0)
    options = dict(backbone="resnet10t", size=32, strength=0.5, blur=0.0, min_scale=0.5, lr=3e-3, warmup_epochs=0)
    return Supervised(**(options | dict(num_classes=19) | change))


def trainer(epochs, **options):
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    return L.Trainer(max_epochs=epochs, accelerator="cpu", num_sanity_val_steps=0, **(quiet | options))


def test_it_learns_the_labels_and_its_checkpoint_opens(tmp_path):
    run = trainer(8, limit_val_batches=0)
    model = small_model()
    run.fit(model, datamodule=Photos(batch_size=32, per_picture=4))
    assert run.callback_metrics["loss"] < 0.6 * math.log(19)
    assert run.callback_metrics["accuracy"] > 0.5
    run.save_checkpoint(tmp_path / "a.ckpt")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load(tmp_path / "a.ckpt").encoder()(x), model.eval()(x))


def test_unknown_labels_have_no_part_in_the_loss():
    model = small_model().eval()  # in training mode BatchNorm sees all images
    x, label = torch.randn(4, 3, 32, 32), torch.tensor([3, -1, 5, -1])
    whole, known = model.step(x, label), model.step(x[[0, 2]], label[[0, 2]])
    torch.testing.assert_close(whole.loss, known.loss)
    assert model.step(x, torch.full((4,), -1)).loss == 0
    h = model(x[[0, 2]])
    torch.testing.assert_close(known.loss, torch.nn.functional.cross_entropy(model.head(h), label[[0, 2]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_classes=0), "Supervised: num_classes must be at least 2, got 0: it needs labelled images"),
        (dict(label_smoothing=2.0), r"Supervised: label_smoothing must be in \[0, 1\], got 2.0"),
    ],
)
def test_a_bad_argument_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        small_model(**change)
