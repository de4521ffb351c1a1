"""SimCLR: learns within a few steps, resumes, evaluates itself; with ``-m learning`` it trains to the bar (3 seeds)."""

import functools
import json
import math
from itertools import pairwise

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("timm")
import lightning as L

from fastssl.data import Photos
from fastssl.methods import SimCLR
from fastssl.methods.base import Step, effective_rank
from fastssl.methods.optim import cosine, create_optimizer, parameter_groups, warmup_cosine
from fastssl.models import ProjectionHead, create_backbone

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*logging interval"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
]


class Record(L.Callback):
    """Loss of every step, and what is logged."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, *_):
        self.losses.append(float(trainer.callback_metrics["loss"]))


def small_model(**change):
    torch.manual_seed(0)
    options = dict(backbone="resnet10t", size=32, strength=0.5, blur=0.0, temperature=0.2, lr=2e-3, warmup_epochs=0)
    return SimCLR(**(options | dict(num_classes=19) | change))


def small_data():
    return Photos(batch_size=32, per_picture=4)


def trainer(epochs, **options):
    return L.Trainer(
        **(
            dict(
                max_epochs=epochs,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
            )
            | options
        )
    )


def test_the_loss_falls_and_the_evaluation_is_logged():
    record = Record()
    run = trainer(6, callbacks=[record], check_val_every_n_epoch=6)
    run.fit(small_model(), datamodule=small_data())
    assert len(record.losses) == 12
    assert sum(record.losses[-3:]) < sum(record.losses[:3]) - 0.3
    metrics = run.callback_metrics
    assert math.isclose(metrics["mi_bound"], math.log(63) - metrics["loss"], rel_tol=1e-5)
    assert 1 / 19 < metrics["knn"] <= 1
    assert 0 <= metrics["probe"] <= 1


def test_the_same_seed_gives_the_same_run():
    losses = []
    for _ in range(2):
        record = Record()
        trainer(1, callbacks=[record], limit_val_batches=0).fit(small_model(), datamodule=small_data())
        losses.append(record.losses)
    assert losses[0] == losses[1]


def test_a_run_continued_from_its_checkpoint_equals_the_run_without_a_stop(tmp_path):
    whole = Record()
    trainer(3, callbacks=[whole], limit_val_batches=0).fit(small_model(), datamodule=small_data())

    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer, *_):
            trainer.should_stop = trainer.current_epoch == 1

    first, second = Record(), Record()
    part = trainer(3, callbacks=[first, Stop()], limit_val_batches=0)
    part.fit(small_model(), datamodule=small_data())
    part.save_checkpoint(tmp_path / "last.ckpt")
    torch.manual_seed(123)
    model = SimCLR(backbone="resnet10t", size=32, strength=0.5, blur=0.0, temperature=0.2, lr=2e-3, warmup_epochs=0,
                   num_classes=19)  # other weights  # fmt: skip
    trainer(3, callbacks=[second], limit_val_batches=0).fit(
        model, datamodule=small_data(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    assert first.losses + second.losses == whole.losses


def test_a_checkpoint_opens_alone(tmp_path):
    model = small_model()
    run = trainer(1, limit_train_batches=1, limit_val_batches=0)
    run.fit(model, datamodule=small_data())
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = SimCLR.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), model.eval()(x))
    assert again.hparams.temperature == 0.2


def test_mixed_precision_and_accumulation_train():
    record = Record()
    run = trainer(1, precision="bf16-mixed", accumulate_grad_batches=2, callbacks=[record])
    run.fit(small_model(), datamodule=small_data())
    assert all(math.isfinite(loss) for loss in record.losses)
    assert run.global_step == 1
    assert 0 < run.callback_metrics["knn"] <= 1


def test_the_probe_does_not_reach_the_encoder():
    model = small_model()
    model.log = lambda *_: None
    h = model(torch.randn(4, 3, 32, 32))
    model.probe_loss(h, torch.tensor([0, 1, -1, 2])).backward()
    assert model.probe.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.backbone.parameters())
    assert model.probe_loss(h, torch.full((4,), -1)) == 0


def test_images_without_labels_train():
    class Unlabelled(Photos):
        def setup(self, stage=None):
            super().setup(stage)
            self.train.labels.fill_(-1)
            self.test.labels.fill_(-1)

    run = trainer(1)
    run.fit(small_model(), datamodule=Unlabelled(batch_size=32, per_picture=4))
    assert math.isfinite(run.callback_metrics["loss"])
    assert "knn" not in run.callback_metrics
    trainer(1).fit(small_model(num_classes=0), datamodule=Unlabelled(batch_size=32, per_picture=4))


def test_norms_and_biases_do_not_decay():
    decayed, kept = parameter_groups(create_backbone("resnet10t"), 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0)
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim == 1 for p in kept["params"])


def test_the_learning_rate_warms_up_and_falls_to_zero():
    factors = [warmup_cosine(step, 4, 20) for step in range(21)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1]
    assert factors[4] == 1
    assert factors[12] == pytest.approx(0.5)
    assert factors[20] == pytest.approx(0)
    assert all(a >= b for a, b in pairwise(factors[4:]))


def test_schedules_end_where_they_should():
    assert warmup_cosine(20, 4, 20, final=0.1) == pytest.approx(0.1)
    assert [cosine(2.0, 4.0, progress) for progress in (0, 0.5, 1, 1.5)] == pytest.approx([2, 3, 4, 4])


def test_lars_is_the_formula_of_its_paper():
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 3)
    lr, decay, momentum = 0.3, 0.01, 0.9
    optimizer = create_optimizer("lars", parameter_groups(layer, decay), lr, momentum)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    v = u = 0
    for _ in range(3):
        layer.weight.grad, layer.bias.grad = torch.randn(3, 4), torch.randn(3)
        # You et al. 2017, algorithm 1, for what decays; plain SGD for norms and biases, as in SimCLR.
        local = 0.001 * weight.norm() / (layer.weight.grad.norm() + decay * weight.norm())
        v = momentum * v + local * (layer.weight.grad + decay * weight)
        u = momentum * u + layer.bias.grad
        weight, bias = weight - lr * v, bias - lr * u
        optimizer.step()
        torch.testing.assert_close(layer.weight.detach(), weight)
        torch.testing.assert_close(layer.bias.detach(), bias)


def test_the_learning_rate_grows_with_the_batch():
    def rate(**options):
        run = trainer(1, limit_train_batches=1, limit_val_batches=0, **options)
        run.fit(small_model(lr=0.3, lr_batch_size=256, optimizer="lars", momentum=0.9), datamodule=small_data())
        return run.optimizers[0].param_groups[0]["initial_lr"]

    assert rate() == pytest.approx(0.3 * 32 / 256)
    assert rate(accumulate_grad_batches=2) == pytest.approx(0.3 * 64 / 256)


def test_collapse_is_seen():
    model, logged = small_model(), {}
    model.log = lambda name, value, **_: logged.update({name: float(value)})
    z = torch.randn(512, 16)
    for name, value in (("spread", z), ("collapsed", z[:1] + 1e-3 * z)):
        model._log_collapse(Step(z.sum(), z, value))
        logged[name] = logged.pop("z_std")
    assert logged["spread"] == pytest.approx(1, abs=0.02)
    assert logged["collapsed"] < 0.01
    assert effective_rank(z) == pytest.approx(16, abs=0.2)
    assert effective_rank(z[:, :1] * torch.ones(16)) == pytest.approx(1, abs=0.01)


def test_the_step_is_one_graph_and_gives_the_same_losses(monkeypatch):
    def losses(**options):
        record = Record()
        trainer(1, callbacks=[record], limit_train_batches=2, limit_val_batches=0).fit(
            small_model(**options), datamodule=small_data()
        )
        return record.losses

    plain = losses()
    # Without generating code, which takes minutes and is PyTorch's affair.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager", fullgraph=True))
    assert losses(compile=True) == pytest.approx(plain, rel=1e-4)


def test_small_stem_keeps_the_resolution():
    model = create_backbone("resnet10t", "small").eval()
    shapes = []
    model.layer1.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 512)
    assert shapes[0][-2:] == (32, 32)


def test_projection_head_has_the_layers_of_the_paper():
    head = ProjectionHead(8, 16, 4, layers=3)
    assert head(torch.randn(5, 8)).shape == (5, 4)
    assert [m.out_features for m in head if isinstance(m, torch.nn.Linear)] == [16, 16, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: create_backbone("resnet81"),
            "name of a timm model, got 'resnet81'; did you mean resnet",
        ),
        (lambda: create_backbone("vit_tiny_patch16_224", "small"), "only ResNets have the small stem"),
        (lambda: create_backbone("resnet10t", "big"), 'stem must be "timm" or "small", got \'big\''),
        (lambda: ProjectionHead(8, 0), "ProjectionHead: hidden_dim must be at least 1, got 0"),
        (lambda: small_model(lr=-1), "SimCLR: lr must be at least 0, got -1"),
        (lambda: small_model(optimizer="lamb"), "optimizer must be"),
        (lambda: small_model(temperature=0), "temperature must be"),
    ],
)
def test_a_bad_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.learning
def test_three_seeds_reach_five_points_over_the_untrained_encoder(tmp_path):
    """The README's command with its defaults, three times; about 3 minutes each on two cores."""
    from fastssl.cli import main

    runs = []
    for seed in range(3):
        out = tmp_path / str(seed)
        assert main(["fit", "simclr", "--seed", str(seed), "--out", str(out)]) == 0
        runs.append(json.loads((out / "results.json").read_text()))
    mean = {
        (line, kind): sum(run["accuracy"][line][kind] for run in runs) / 3
        for line in ("pixels", "untrained", "untrained_calibrated", "trained")
        for kind in ("knn", "linear")
    }
    print({f"{line} {kind}": f"{value:.3f}" for (line, kind), value in mean.items()})
    for line in ("pixels", "untrained"):
        assert mean["trained", "knn"] >= mean[line, "knn"] + 0.05
    for line in ("pixels", "untrained", "untrained_calibrated"):
        assert mean["trained", "knn"] > mean[line, "knn"]
        assert mean["trained", "linear"] > mean[line, "linear"]
