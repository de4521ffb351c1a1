"""DINO: its teacher, schedules and head as the paper has them; it learns within a few steps; with ``-m learning`` it
trains to the bar (3 seeds)."""

import copy
import functools
import json
import math

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("lightning")
pytest.importorskip("timm")
import lightning as L

from fastssl.data import Photos
from fastssl.losses import DINOLoss
from fastssl.methods import DINO
from fastssl.methods.base import load
from fastssl.models import DINOHead, momentum_copy, update_momentum

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*logging interval"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


class Record(L.Callback):
    def __init__(self):
        self.losses, self.decays, self.metrics = [], [], []

    def on_train_batch_end(self, trainer, *_):
        self.losses.append(float(trainer.callback_metrics["loss"]))
        self.decays.append([group["weight_decay"] for group in trainer.optimizers[0].param_groups])
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def small_model(**change):
    torch.manual_seed(0)
    options = dict(
        backbone="vit_tiny_patch16_224", backbone_args={"patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3},
        size=32, local_size=16, local_crops=2, out_dim=64, hidden_dim=32, bottleneck_dim=16, lr=1e-3, warmup_epochs=0,
        teacher_momentum=0.996, freeze_last_layer=0, num_classes=19,
    )  # fmt: skip
    return DINO(**(options | change))


def trainer(epochs, **options):
    plain = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    return L.Trainer(
        **(plain | dict(max_epochs=epochs, accelerator="cpu", num_sanity_val_steps=0, log_every_n_steps=1) | options)
    )


def fit(model, epochs=1, **options):
    record = Record()
    run = trainer(epochs, callbacks=[record], **options)
    run.fit(model, datamodule=Photos(batch_size=19, per_picture=4))
    return record, run


def test_the_loss_falls_and_collapse_is_watched():
    # The centre starts at the teacher's mean, so that its catching up does not hide what the student learns.
    model = small_model()
    model.criterion = DINOLoss(64, center_momentum=0.0)
    record, run = fit(model, 5, check_val_every_n_epoch=5)
    assert sum(record.losses[-4:]) < sum(record.losses[1:5]) - 0.4
    for metrics in record.metrics:
        assert 0 < metrics["teacher_entropy"] <= metrics["assignment_entropy"] <= math.log(64) + 1e-4
        assert 0 < metrics["z_std"] <= 1.01
    assert 0 < run.callback_metrics["knn"] <= 1
    assert 1 <= run.callback_metrics["h_rank"] <= 48


def plain_loss(model, views, center):
    """Algorithm 1 in its own words, on the networks of `model`."""
    t = [model.teacher["head"](model.teacher["backbone"](x)) for x in views[:2]]
    s = [model.head(model.backbone(x)) for x in views]
    total, terms = 0, 0
    for i, teacher in enumerate(t):
        p = ((teacher - center) / 0.04).softmax(1).detach()
        for j, student in enumerate(s):
            if i != j:
                total, terms = total - (p * (student / 0.1).log_softmax(1)).sum(1).mean(), terms + 1
    return total / terms, torch.cat(t).mean(0)


def test_a_step_is_the_algorithm_of_the_paper(monkeypatch):
    monkeypatch.setattr(DINO, "current_epoch", 0)
    model = small_model().double()
    with torch.no_grad():  # a teacher that differs from the student
        for p in model.teacher.parameters():
            p.add_(0.05 * torch.randn_like(p))
    model.criterion.center.normal_()
    center = model.criterion.center.clone()[0]
    views = [torch.randn(3, 3, size, size, dtype=torch.float64) for size in (32, 32, 16, 16)]
    expected, mean = plain_loss(model, views, center)
    parameters = [*model.backbone.parameters(), *model.head.parameters()]
    gradients = torch.autograd.grad(expected, parameters)
    result = model.step(*views)
    torch.testing.assert_close(result.loss, expected)
    for got, want in zip(torch.autograd.grad(result.loss, parameters), gradients, strict=True):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(model.criterion.center[0], 0.9 * center + 0.1 * mean)
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())


def test_teacher_and_schedules_follow_the_paper():
    model = small_model(weight_decay=0.04, final_weight_decay=0.4, teacher_momentum=0.5, freeze_last_layer=1)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.teacher["backbone"].parameters(), model.backbone.parameters(), strict=True)
    )
    prototypes = model.head.last_layer.weight.clone()

    class Watch(Record):
        """The teacher as it should be: moved after each step by what the cosine says."""

        def on_train_start(self, trainer, module):
            self.teacher = copy.deepcopy(module.teacher["backbone"])

        def on_train_batch_end(self, trainer, module, *rest):
            super().on_train_batch_end(trainer, module, *rest)
            step, total = trainer.global_step - 1, trainer.estimated_stepping_batches
            momentum = 1 - 0.5 * 0.5 * (1 + math.cos(math.pi * step / total))
            with torch.no_grad():
                for mine, p in zip(self.teacher.parameters(), module.backbone.parameters(), strict=True):
                    mine.mul_(momentum).add_(p, alpha=1 - momentum)
            for mine, its in zip(self.teacher.parameters(), module.teacher["backbone"].parameters(), strict=True):
                torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)
            if trainer.current_epoch == 0:
                assert torch.equal(module.head.last_layer.weight, prototypes)

    watch = Watch()
    trainer(2, callbacks=[watch], limit_val_batches=0).fit(model, datamodule=Photos(batch_size=19, per_picture=4))
    assert not torch.equal(model.head.last_layer.weight, prototypes)  # free after the first epoch
    total = len(watch.decays)
    for step, (decayed, kept, *_) in enumerate(watch.decays):
        assert decayed == pytest.approx(0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * step / total)))
        assert kept == 0


def test_gradients_are_clipped_one_by_one(monkeypatch):
    monkeypatch.setattr(DINO, "current_epoch", 5)
    model = small_model(clip_grad=0.5)
    for number, p in enumerate((*model.backbone.parameters(), *model.head.parameters())):
        p.grad = torch.full_like(p, 10.0 ** (number % 3 - 3))
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.on_before_optimizer_step(None)
    clipped = 0
    for name, p in model.named_parameters():
        if p.grad is not None:
            norm = before[name].norm()
            clipped += bool(norm > 0.5)
            torch.testing.assert_close(p.grad, before[name] * min(1.0, 0.5 / (norm + 1e-6)))
    assert 0 < clipped < len(before)


def test_the_head_is_the_papers():
    head = DINOHead(8, 20, 16, 4, layers=3)
    assert [type(m).__name__ for m in head.mlp] == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    h = torch.randn(5, 8)
    expected = F.normalize(head.mlp(h), dim=1) @ F.normalize(head.last_layer.weight, dim=1).T
    torch.testing.assert_close(head(h), expected)
    assert head(h).abs().max() <= 1 + 1e-6
    assert sum(isinstance(m, torch.nn.BatchNorm1d) for m in DINOHead(8, 20, 16, 4, 3, batch_norm=True).mlp) == 2
    longer = DINOHead(8, 20, 16, 4, norm_last_layer=False)
    with torch.no_grad():
        before = longer(h)
        longer.last_layer.length.mul_(3)
    torch.testing.assert_close(longer(h), 3 * before)


def test_a_momentum_copy_is_deterministic_and_learns_nothing_itself():
    from timm.layers import DropPath

    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5), DropPath(0.5), torch.nn.BatchNorm1d(4))
    copied = momentum_copy(module).train()
    x = torch.randn(64, 4)
    assert torch.equal(copied(x), copied(x))
    assert not any(p.requires_grad for p in copied.parameters())
    assert module[1].p == 0.5 and module[2].drop_prob == 0.5
    # 0.999 after 1000 steps has taken up 63 % of an encoder that stands still.
    with torch.no_grad():
        for p in copied.parameters():
            p.zero_()
        module[0].weight.fill_(1)
    for _ in range(1000):
        update_momentum(copied, module, 0.999)
    assert copied[0].weight.mean().item() == pytest.approx(1 - 0.999**1000, abs=1e-4)
    assert round(1 - 0.999**1000, 2) == 0.63


def test_a_checkpoint_gives_the_teacher(tmp_path):
    model = small_model()
    _, run = fit(model, limit_train_batches=2, limit_val_batches=0)
    run.save_checkpoint(tmp_path / "last.ckpt")
    encoder = load(tmp_path).encoder()
    x = torch.randn(2, 3, 32, 32)
    model.eval()
    h = encoder(x)
    assert torch.equal(h, model.teacher["backbone"](x)) and not torch.equal(h, model.backbone(x))
    assert encoder.project(h).shape == (2, 16)


def test_convolutional_networks_train_too():
    model = small_model(backbone="resnet10t", backbone_args=None, head_batch_norm=True, local_crops=1)
    record, _ = fit(model, limit_train_batches=2, limit_val_batches=0)
    assert all(math.isfinite(loss) for loss in record.losses)


def test_the_step_is_one_graph_and_gives_the_same_losses(monkeypatch):
    plain, _ = fit(small_model(), limit_train_batches=3, limit_val_batches=0)
    # Without generating code, which takes minutes and is PyTorch's affair.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager", fullgraph=True))
    compiled, _ = fit(small_model(compile=True), limit_train_batches=3, limit_val_batches=0)
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(teacher_momentum=1.5), "DINO: teacher_momentum must be from 0 to 1, got 1.5"),
        (dict(local_crops=-1), "DINO: local_crops must be at least 0, got -1"),
        (dict(out_dim=0), "DINOHead: out_dim must be at least 1, got 0"),
        (dict(teacher_temperature=0), "teacher_temp must be"),
        (dict(backbone_args={"patch_siez": 8}), "backbone_args must be arguments of timm's vit_tiny_patch16_224"),
        (
            dict(backbone="swin_tiny_patch4_window7_224", backbone_args=None, size=64),
            "local_crops must be 0 for swin_tiny",
        ),
        (dict(local_size=12), "local_size must be a multiple of 8, the patch size of vit_tiny_patch16_224, got 12"),
    ],
)
def test_a_bad_argument_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        small_model(**change)


@pytest.mark.learning
def test_three_seeds_reach_five_points_over_the_untrained_encoder(tmp_path):
    """`fastssl fit dino` with its defaults, three times."""
    from fastssl.cli import main

    runs = []
    for seed in range(3):
        out = tmp_path / str(seed)
        assert main(["fit", "dino", "--seed", str(seed), "--out", str(out)]) == 0
        runs.append(json.loads((out / "results.json").read_text()))
    mean = {
        (line, kind): sum(run["accuracy"][line][kind] for run in runs) / 3
        for line in ("pixels", "untrained", "trained")
        for kind in ("knn", "linear")
    }
    print({f"{line} {kind}": f"{value:.3f}" for (line, kind), value in mean.items()})
    for line in ("pixels", "untrained"):
        assert mean["trained", "knn"] >= mean[line, "knn"] + 0.05
        assert mean["trained", "linear"] > mean[line, "linear"]
