"""MoCo, MoCo v3, NNCLR, SupCon: a step is the formula of the paper, and the loss falls. That runs go on with the same
bits is in ``training/test_resume.py``. With ``-m learning`` each is 5 points above the untrained encoder (3 seeds)."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("lightning")
pytest.importorskip("timm")
import lightning as L

from fastssl.data import Photos
from fastssl.methods import NNCLR, InstDisc, MoCo, MoCoV3, SupCon
from fastssl.methods.base import load

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*logging interval"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]
COMMON = dict(backbone="resnet10t", size=32, lr=2e-3, lr_batch_size=0, warmup_epochs=0, out_dim=16)
COLOURS = dict(strength=0.5, blur=0.0)
MAKE = {
    "moco": lambda **change: MoCo(**COMMON, **COLOURS, **{"queue_size": 48, "key_momentum": 0.9, **change}),
    "mocov3": lambda **change: MoCoV3(
        **COMMON, strength=0.5, blur=(0.0, 0.0), solarize=0.0, **{"hidden_dim": 32, "key_momentum": 0.9, **change}
    ),
    "nnclr": lambda **change: NNCLR(**COMMON, **COLOURS, **{"queue_size": 48, "predictor_dim": 32, **change}),
    "supcon": lambda **change: SupCon(**COMMON, **COLOURS, **change),
    "instdisc": lambda **change: InstDisc(**COMMON, strength=0.5, **change),
}


def small(name, **change):
    torch.manual_seed(0)
    return MAKE[name](**change)


class World:
    """What a step asks of Lightning's trainer."""

    world_size = 1


def eager(name, **change):
    model = small(name, **change).double().train()
    model.trainer = World()
    return model


def cross_entropy(logits, target=None):
    return F.cross_entropy(logits, torch.arange(len(logits)) if target is None else target)


def unit(x):
    return F.normalize(x, dim=1)


def views(n=6):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(n, 3, 32, 32, generator=generator, dtype=torch.float64) for _ in range(2)]


def check(model, loss, result):
    """The same value and the same gradients as the formula's."""
    torch.testing.assert_close(result.loss, loss)
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(loss, parameters, allow_unused=True)
    got = torch.autograd.grad(result.loss, parameters, allow_unused=True)
    for mine, want in zip(got, expected, strict=True):
        assert (mine is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(mine, want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_step_of_moco_is_algorithm_1(symmetric):
    model = eager("moco", symmetric=symmetric)
    x0, x1 = views()
    queue = unit(model.queue.rows())  # its rows were rounded to float32

    def encode(encoder, projection, x):
        return unit(projection(encoder(x)))

    total, keys = 0, []
    for a, b in [(x0, x1), (x1, x0)] if symmetric else [(x0, x1)]:
        q = encode(model.backbone, model.projection, a)
        k = encode(model.key_encoder["backbone"], model.key_encoder["projection"], b).detach()
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / 0.2
        total = total + cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64))
        keys.append(k)
    result = model.step(x0, x1)
    check(model, total / len(keys), result)
    torch.testing.assert_close(model.queue.rows()[: 6 * len(keys)], torch.cat(keys))
    torch.testing.assert_close(model.queue.rows()[6 * len(keys) :], queue[6 * len(keys) :])
    before = model.key_encoder["projection"][0].weight.clone()
    with torch.no_grad():
        model.projection[0].weight.add_(1.0)
    model.after_optimizer_step(0.5)
    torch.testing.assert_close(
        model.key_encoder["projection"][0].weight, before * 0.9 + model.projection[0].weight * 0.1
    )


def test_a_step_of_moco_v3_is_algorithm_1():
    model = eager("mocov3")
    x0, x1 = views()
    q0, q1 = (unit(q) for q in model.predictor(model.projection(model.backbone(torch.cat([x0, x1])))).chunk(2))
    keys = model.key_encoder["projection"](model.key_encoder["backbone"](torch.cat([x0, x1])))
    k0, k1 = (unit(k).detach() for k in keys.chunk(2))
    loss = 2 * 0.2 * (cross_entropy(q0 @ k1.T / 0.2) + cross_entropy(q1 @ k0.T / 0.2))
    check(model, loss, model.step(x0, x1))
    assert model._momentum(0.0) == 0.9 and model._momentum(1.0) == 1.0
    vit = MoCoV3(backbone="vit_tiny_patch16_224", backbone_args={"depth": 1}, size=32, hidden_dim=8, out_dim=8)
    assert (
        not vit.backbone.patch_embed.proj.weight.requires_grad and vit.backbone.blocks[0].mlp.fc1.weight.requires_grad
    )


def test_a_step_of_nnclr_is_the_pseudocode():
    model = eager("nnclr")
    x0, x1 = views()
    queue = unit(model.queue.rows())  # its rows were rounded to float32
    z = model.projection(model.backbone(torch.cat([x0, x1])))
    p0, p1 = (unit(p) for p in model.predictor(z).chunk(2))
    z0, z1 = (unit(part).detach() for part in z.chunk(2))
    nn0, nn1 = (queue[(part @ queue.T).argmax(1)] for part in (z0, z1))
    loss = (cross_entropy(nn0 @ p1.T / 0.1) + cross_entropy(nn1 @ p0.T / 0.1)) / 2
    check(model, loss, model.step(x0, x1))
    torch.testing.assert_close(model.queue.rows()[:6], z0)


def test_a_step_of_supcon_is_equation_2():
    model = eager("supcon")
    x0, x1 = views()
    labels = torch.tensor([0, 1, 0, 2, -1, -1])
    classes = model.targets(type("Batch", (), {"label": labels, "index": torch.tensor([3, 9, 4, 5, 6, 7])}))[0]
    assert torch.equal(classes[:4], labels[:4]) and classes[4] != classes[5] and (classes[4:] < 0).all()
    z = unit(model.projection(model.backbone(torch.cat([x0, x1]))))
    s, both, total = z @ z.T / 0.1, torch.cat([classes, classes]), 0
    for i in range(12):
        others = [j for j in range(12) if j != i]
        positives = [j for j in others if both[j] == both[i]]
        total = total + s[i, others].logsumexp(0) - s[i, positives].mean()
    check(model, total / 12, model.step(x0, x1, classes))


@pytest.mark.parametrize("proximal", [0.0, 3.0])
def test_a_step_of_instance_discrimination_is_equation_2(proximal):
    model = eager("instdisc", num_images=9, proximal=proximal)
    x, index = views()[0], torch.tensor([8, 0, 3, 4, 1, 6])
    bank = model.bank = unit(model.bank)  # its rows were rounded to float32
    bank = bank.clone()
    v = unit(model.projection(model.backbone(x)))
    loss = cross_entropy(v @ bank.T / 0.07, index)
    loss = loss + proximal * (v - bank[index]).square().sum(1).mean()
    result = model.step(x, index)
    check(model, loss, result)
    torch.testing.assert_close(model.bank, bank)  # not before the step is made
    model.after_optimizer_step(0.5)
    bank[index] = unit(0.5 * bank[index] + 0.5 * v.detach())
    torch.testing.assert_close(model.bank, bank)
    model.after_optimizer_step(0.6)  # nothing waits any more
    torch.testing.assert_close(model.bank, bank)
    for wrong in ([9, 2], [-1, 9]):
        with pytest.raises(ValueError, match=f"from 0 to num_images - 1, 8, got {min(wrong)} to 9"):
            model.targets(type("Batch", (), {"index": torch.tensor(wrong)}))


def test_instance_discrimination_has_a_row_for_each_image(tmp_path):
    model, data = small("instdisc"), Photos(batch_size=19, per_picture=2)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, limit_val_batches=0, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    assert model.bank.shape == (38, 16) and model.hparams["num_images"] == 38
    start = InstDisc(**COMMON, num_images=38).bank
    assert (model.bank != start).any(1).all()  # every image was seen
    file = tmp_path / "all.ckpt"
    trainer.save_checkpoint(file)
    assert torch.equal(load(file).bank, model.bank)


class Losses(L.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, *_):
        self.values.append(float(trainer.callback_metrics["loss"]))


@pytest.mark.parametrize("name", list(MAKE))
def test_the_loss_falls(name):
    losses = Losses()
    L.Trainer(
        max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0, callbacks=[losses],
    ).fit(small(name), datamodule=Photos(batch_size=19, per_picture=4))  # fmt: skip
    # Where a momentum encoder starts as a copy, and where neighbours are random, it rises first.
    first = losses.values[4:12] if name in ("mocov3", "nnclr") else losses.values[:8]
    assert sum(losses.values[-8:]) < sum(first), losses.values


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small("moco", key_momentum=1.5), "MoCo: key_momentum must be from 0 to 1, got 1.5"),
        (lambda: small("moco", temperature=0.0), "MoCo: temperature must be finite and above 0"),
        (lambda: small("moco", queue_size=0), "MoCo: queue_size must be at least 1"),
        (lambda: small("mocov3", key_momentum=-1.0), "MoCoV3: key_momentum must be from 0 to 1"),
        (lambda: small("mocov3", temperature=0.0), "MoCoV3: temperature must be finite and above 0"),
        (lambda: small("nnclr", queue_size=0), "NNCLR: queue_size must be at least 1"),
        (lambda: small("nnclr", temperature=-0.1), "NNCLR: temperature must be finite and above 0"),
        (lambda: small("supcon", temperature=0.0), "SupConLoss: temperature must be"),
        (lambda: small("instdisc", temperature=0.0), "InstDisc: temperature must be finite and above 0"),
        (lambda: small("instdisc", bank_momentum=1.0), r"InstDisc: bank_momentum must be in \[0, 1\), got 1.0"),
        (lambda: small("instdisc", proximal=-1.0), "InstDisc: proximal must be finite and at least 0, got -1.0"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.learning
@pytest.mark.parametrize("name", [*MAKE, "simclrv2"])
def test_it_learns(name, tmp_path):
    from fastssl.cli import main

    better = []
    for seed in range(3):
        assert main(["fit", name, "--seed", str(seed), "--out", str(tmp_path / str(seed))]) == 0
        accuracy = json.loads((tmp_path / str(seed) / "results.json").read_text())["accuracy"]
        better.append(accuracy["trained"]["knn"] - accuracy["untrained"]["knn"])
        print(json.dumps({"method": name, "seed": seed, **accuracy}))
    assert min(better) >= 0.05
