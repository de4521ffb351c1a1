"""MAE and SimMIM: their steps are those of the papers, MAE's encoder sees a quarter of the patches, its weights have
the published names; both learn within a few steps. With ``-m learning`` they reconstruct to a bar."""

import json

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("timm")
import lightning as L
from torch.utils.flop_counter import FlopCounterMode

from fastssl.data import Photos
from fastssl.methods import MAE, SimMIM
from fastssl.methods.base import load
from fastssl.models.masked import sincos_positions

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*logging interval"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]
SMALL = dict(
    backbone="vit_tiny_patch16_224", backbone_args={"patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3},
    size=32, lr=2e-3, lr_batch_size=0, warmup_epochs=0,
)  # fmt: skip


def small_mae(**change):
    torch.manual_seed(0)
    return MAE(**(SMALL | dict(decoder_dim=32, decoder_depth=1, decoder_heads=2) | change))


def small_simmim(**change):
    torch.manual_seed(0)
    return SimMIM(**(SMALL | dict(mask_unit=16) | change))


@pytest.fixture(autouse=True)
def without_a_trainer(monkeypatch):
    for method in (MAE, SimMIM):
        monkeypatch.setattr(method, "current_epoch", 3)


class Losses(L.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, *_):
        self.values.append(float(trainer.callback_metrics["loss"]))


@pytest.mark.parametrize("make", [small_mae, small_simmim])
def test_the_loss_falls(make, monkeypatch):
    monkeypatch.undo()
    losses = Losses()
    run = L.Trainer(
        max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1, check_val_every_n_epoch=6,
        callbacks=[losses],
    )  # fmt: skip
    run.fit(make(num_classes=19), datamodule=Photos(batch_size=19, per_picture=4))
    assert sum(losses.values[-4:]) < 0.9 * sum(losses.values[:4]), losses.values
    assert 0 < run.callback_metrics["knn"] <= 1


def test_a_step_of_mae_is_the_formula_of_the_paper():
    model = small_mae().double()
    x, index = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.tensor([5, 0, 7])
    masks = model.masks(index)
    assert masks.keep.shape == (3, 4) and masks.mask.sum() == 3 * 12

    encoder, decoder = model.backbone, model.decoder
    tokens = encoder.patch_embed(x).flatten(1, -2) + encoder.pos_embed[:, 1:]
    tokens = torch.stack([tokens[b, masks.keep[b]] for b in range(3)])
    tokens = torch.cat([(encoder.cls_token + encoder.pos_embed[:, :1]).expand(3, -1, -1), tokens], 1)
    for block in encoder.blocks:
        tokens = block(tokens)
    tokens = encoder.norm(tokens)
    torch.testing.assert_close(model.encode(x, masks.keep), tokens)

    y = decoder.embed(tokens)
    full = decoder.mask_token.expand(3, 16, -1).clone()
    for b in range(3):
        full[b, masks.keep[b]] = y[b, 1:]
    y = torch.cat([y[:, :1], full], 1) + decoder.pos_embed
    for block in decoder.blocks:
        y = block(y)
    predicted = decoder.pred(decoder.norm(y))[:, 1:]
    target = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(3, 16, 192)
    target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
    loss = ((predicted - target).square().mean(2) * masks.mask).sum() / masks.mask.sum()
    result = model.step(x, index)
    torch.testing.assert_close(result.loss, loss)
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(loss, parameters)
    for got, want in zip(torch.autograd.grad(result.loss, parameters), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_a_step_of_simmim_is_the_formula_of_the_paper():
    model = small_simmim().double()
    x, index = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.tensor([5, 0, 7])
    mask = model.mask(index)
    assert mask.shape == (3, 4, 4) and (mask.sum((1, 2)) == 12).all()  # ceil(0.6 x 4) units of 2 x 2 patches
    assert torch.equal(mask[:, ::2, ::2], mask[:, 1::2, 1::2])

    encoder, w = model.backbone, mask.flatten(1)[:, :, None].double()
    tokens = encoder.patch_embed(x).flatten(1, -2) * (1 - w) + model.mask_token * w
    tokens = torch.cat([encoder.cls_token.expand(3, -1, -1), tokens], 1) + encoder.pos_embed
    for block in encoder.blocks:
        tokens = block(tokens)
    rows = model.head(encoder.norm(tokens)[:, 1:])
    pixels = torch.nn.functional.pixel_shuffle(rows.transpose(1, 2).unflatten(2, (4, 4)), 8)
    of_pixels = mask.repeat_interleave(8, 1).repeat_interleave(8, 2).unsqueeze(1)
    loss = ((pixels - x).abs() * of_pixels).sum() / (of_pixels.sum() + 1e-5) / 3
    result = model.step(x, index)
    torch.testing.assert_close(result.loss, loss)
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(loss, parameters)
    for got, want in zip(torch.autograd.grad(result.loss, parameters), expected, strict=True):
        torch.testing.assert_close(got, want)
    predicted, flat = model.reconstruct(x, index)
    torch.testing.assert_close(predicted, pixels.detach())
    assert torch.equal(flat, mask.flatten(1))


def test_masks_depend_on_the_key_alone(monkeypatch):
    for model, of in ((small_mae(), lambda m, i: m.masks(i).mask), (small_simmim(mask_unit=8), lambda m, i: m.mask(i))):
        index = torch.arange(20)
        masks = of(model, index)
        assert torch.equal(of(model, index.flip(0)), masks.flip(0))
        monkeypatch.setattr(type(model), "current_epoch", 4)
        assert not torch.equal(of(model, index), masks)
        monkeypatch.setattr(type(model), "current_epoch", 3)


def test_reconstruction_gives_back_the_image_of_a_perfect_decoder(monkeypatch):
    model = small_mae()
    x = torch.rand(2, 3, 32, 32) * torch.rand(2, 3, 32, 32)
    rows = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(2, 16, 192)
    rows = (rows - rows.mean(2, keepdim=True)) / (rows.var(2, keepdim=True) + 1e-6).sqrt()
    monkeypatch.setattr(model.decoder, "forward", lambda tokens, restore: torch.cat([rows[:, :1], rows], 1))
    predicted, mask = model.reconstruct(x, torch.arange(2))
    torch.testing.assert_close(predicted, x)
    assert mask.shape == (2, 16)


def test_the_encoder_does_a_quarter_of_the_work():
    model = small_mae(size=112, backbone_args={"depth": 3, "embed_dim": 96, "num_heads": 3, "patch_size": 8})
    x = torch.randn(2, 3, 112, 112)
    with FlopCounterMode(display=False) as whole:
        model.backbone(x)
    keep = model.masks(torch.arange(2)).keep
    with FlopCounterMode(display=False) as visible:
        model.encode(x, keep)
    assert 0.2 < visible.get_total_flops() / whole.get_total_flops() < 0.27


def test_positions_are_those_of_the_code_of_mae():
    table = sincos_positions(16, (2, 3))[0]
    assert table.shape == (7, 16) and not table[0].any()
    row, column = 1, 2
    frequencies = [10000 ** (-k / 4) for k in range(4)]
    expected = [f(torch.tensor(p * w)) for p in (column, row) for f in (torch.sin, torch.cos) for w in frequencies]
    torch.testing.assert_close(table[1 + row * 3 + column], torch.stack(expected))
    model = small_mae()
    assert not model.backbone.pos_embed.requires_grad and not model.decoder.pos_embed.requires_grad
    with pytest.raises(ValueError, match="dim must be a multiple of 4, got 6"):
        sincos_positions(6, (2, 2))


# The parameters of MaskedAutoencoderViT in facebookresearch/mae, models_mae.py.
OUTSIDE = ["cls_token", "pos_embed", "mask_token", "decoder_pos_embed"]
LAYERS = ["patch_embed.proj", "norm", "decoder_embed", "decoder_norm", "decoder_pred"]
IN_BLOCKS = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]


def test_weights_have_the_names_of_the_published_checkpoints(tmp_path):
    model = small_mae()
    state = model.official_state_dict()
    layers = LAYERS + [f"blocks.{n}.{name}" for n in range(2) for name in IN_BLOCKS]
    layers += [f"decoder_blocks.0.{name}" for name in IN_BLOCKS]
    assert set(state) == {*OUTSIDE, *(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))}
    assert state["decoder_pred.weight"].shape == (192, 32) and state["mask_token"].shape == (1, 1, 32)

    torch.save({"model": state}, tmp_path / "checkpoint.pth")
    other = small_mae()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    other.load_official_state_dict(torch.load(tmp_path / "checkpoint.pth", weights_only=True))
    for name, value in other.official_state_dict().items():
        assert torch.equal(value, state[name]), name

    decoder = other.decoder.pred.weight.clone()
    with torch.no_grad():
        other.backbone.cls_token.zero_()
    other.load_official_state_dict({k: v for k, v in state.items() if "decoder" not in k and k != "mask_token"})
    assert torch.equal(other.backbone.cls_token, state["cls_token"]) and torch.equal(other.decoder.pred.weight, decoder)
    with pytest.raises(ValueError, match="MAE: state must be that of vit_tiny_patch16_224"):
        other.load_official_state_dict({"model": {**state, "norm.weight": torch.zeros(3)}})


def test_the_defaults_are_the_papers():
    h = MAE(size=32, backbone="vit_tiny_patch16_224", backbone_args={"depth": 1}).hparams
    assert (h.lr, h.lr_batch_size, tuple(h.betas), h.weight_decay, h.warmup_epochs) == (
        1.5e-4,
        256,
        (0.9, 0.95),
        0.05,
        40,
    )
    assert (h.mask_ratio, h.norm_pix_loss, h.decoder_dim, h.decoder_depth, h.decoder_heads) == (0.75, True, 512, 8, 16)


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        (MAE, {"backbone": "resnet18", "backbone_args": {}}, "backbone must be a vision transformer of timm"),
        (MAE, {"mask_ratio": 1.0}, "mask_ratio must leave a patch of 16, got 1.0"),
        (MAE, {"decoder_heads": 5}, "heads must divide dim, 512, got 5"),
        (MAE, {"betas": (0.9, 1.0)}, r"betas must be in \[0, 1\)"),
        (
            SimMIM,
            {"mask_unit": 12},
            "mask_unit must be a multiple of the patches' side, 8, that divides size, 32, got 12",
        ),
        (SimMIM, {"mask_unit": 16, "mask_ratio": 0.8}, "leave one of 4 units, got 0.8"),
        (SimMIM, {"mask_unit": 16, "mask_ratio": 0}, "mask_ratio must be above 0 and leave one of 4 units, got 0"),
    ],
)
def test_bad_arguments_are_named(method, change, message):
    with pytest.raises(ValueError, match=message):
        method(**(SMALL | change))


def interpolated(x, mask, patch, power=6):
    """Every patch filled with colours of the visible ones, the nearer the heavier: what context gives without learning.

    Args:
        x: images [B, 3, H, H].
        mask: [B, L], 1 where a patch is masked.
        patch: side of a patch.
        power: of the distance; 6 does best among 1 to 6 on the photographs.
    """
    side = x.shape[2] // patch
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()
    weight = torch.cdist(places, places).clamp(min=1e-6) ** -power * (1 - mask)[:, None]  # [B, L, L]
    colours = torch.nn.functional.avg_pool2d(x, patch).flatten(2)  # [B, 3, L]
    filled = colours @ (weight / weight.sum(2, keepdim=True)).transpose(1, 2)
    return torch.nn.functional.interpolate(filled.unflatten(2, (side, side)), scale_factor=patch)


@pytest.mark.learning
@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_it_predicts_better_than_interpolation(name, tmp_path, monkeypatch):
    """Windows that it was trained on, under masks that it has not seen; and windows of the pictures' other halves.
    Interpolation is told of each patch that MAE normalises its mean and its deviation."""
    from fastssl.cli import main

    monkeypatch.undo()
    assert main(["fit", name, "--out", str(tmp_path / name)]) == 0
    model = load(tmp_path / name)
    model.hparams["seed"] = 12345
    data = Photos(batch_size=256, size=64, stride=32, per_picture=144)
    data.setup("fit")
    losses = {}
    for half, loader in (("train", data.train_dataloader()), ("test", data.val_dataloader()[1])):
        batch = next(iter(loader))
        x = model.eval_transform(batch.image, channels="first")
        patch = model.patch_size
        with torch.no_grad():
            loss = model.step(x, batch.index).loss.item()
            _, mask = model.reconstruct(x, batch.index)
        true, guess = (
            torch.nn.functional.unfold(image, patch, stride=patch).transpose(1, 2)
            for image in (x, interpolated(x, mask, patch))
        )
        if name == "mae":
            deviation = (true.var(2, keepdim=True) + 1e-6).sqrt()
            error = ((guess - guess.mean(2, keepdim=True) - true + true.mean(2, keepdim=True)) / deviation).square()
        else:
            error = (guess - true).abs()
            assert half == "test" or loss < 0.9 * (x - x.mean((2, 3), keepdim=True)).abs().mean().item()
        losses[half] = loss, (error.mean(2) * mask).sum().item() / mask.sum().item()
        print(json.dumps({"method": name, "half": half, "loss": loss, "of interpolation": losses[half][1]}))
    assert losses["train"][0] < 0.95 * losses["train"][1] and losses["test"][0] < losses["test"][1]


def test_the_picture_of_a_reconstruction(tmp_path, monkeypatch, capsys):
    from PIL import Image

    from fastssl.cli import main

    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    model = small_mae()
    torch.save(
        {
            "state_dict": model.state_dict(),
            "hyper_parameters": dict(model.hparams),
            "fastssl": {"method": "mae", "version": "0"},
        },
        "last.ckpt",
    )
    for seed in ("0", "1"):
        arguments = ["last.ckpt", "--images", "2", "--seed", seed, "--out", f"{seed}.png"]
        assert main(["visualize", "reconstruction", *arguments]) == 0
    assert capsys.readouterr().out.startswith("2 images, 75 % of 4 x 4 patches masked: 0.png")
    first, second = (Image.open(f"{seed}.png").convert("RGB") for seed in (0, 1))
    assert first.size == second.size and first.tobytes() != second.tobytes()  # of another mask
    assert main(["visualize", "reconstruction", "vit_tiny_patch16_224"]) == 2
    assert "is no checkpoint" in capsys.readouterr().err
