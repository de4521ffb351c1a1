"""Fine-tuning: rates per layer, learning on a tiny set, the encoder untouched, the same seed the same weights."""

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("timm")
from fastssl.data import Batch, TensorImages
from fastssl.evaluate.finetune import FewLabels, Recipe, classifier_accuracy, fine_tune, layer_groups
from fastssl.models.backbones import create_backbone
from fastssl.models.encoder import Architecture, Encoder
from fastssl.models.heads import DINOHead, ProjectionHead


def stripes(n: int, seed: int, size: int = 16) -> TensorImages:
    """Two classes: horizontal and vertical stripes under noise."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 2
    wave = (torch.arange(size) // 2 % 2).float()
    pattern = torch.where(label[:, None, None] == 0, wave[:, None].expand(size, size), wave.expand(size, size))
    image = 90 + 70 * pattern[:, None] + 20 * torch.randn(n, 3, size, size, generator=generator)
    return TensorImages(image.clamp(0, 255).byte(), label)


def tiny(name: str = "test_resnet", size: int = 16, **kwargs) -> Encoder:
    torch.manual_seed(0)
    architecture = Architecture(name, "timm", kwargs)
    return Encoder(create_backbone(*architecture), architecture, size)


_VIT = dict(img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=2)
_QUICK = dict(epochs=6, batch_size=16, min_scale=0.5, lr=0.02, warmup=0.1, label_smoothing=0.1)


def rates(name, kwargs, decay=0.5):
    model = create_backbone(name, "timm", kwargs)
    model.reset_classifier(7)
    by_parameter = {id(p): group for group in layer_groups(model, decay, 0.05) for p in group["params"]}
    return {name: by_parameter[id(p)] for name, p in model.named_parameters()}


def test_rates_of_a_transformer_halve_from_layer_to_layer():
    group = rates("vit_tiny_patch16_224", _VIT)
    scale = {name: group["lr_scale"] for name, group in group.items()}
    assert scale["head.weight"] == 1
    assert [scale[f"blocks.{n}.attn.qkv.weight"] for n in (2, 1, 0)] == [0.5, 0.25, 0.125]
    assert scale["norm.weight"] == 0.5
    assert scale["patch_embed.proj.weight"] == scale["pos_embed"] == scale["cls_token"] == 0.0625
    decayed = {name for name, group in group.items() if group["weight_decay"]}
    assert "blocks.0.mlp.fc1.weight" in decayed and "head.weight" in decayed
    assert not decayed & {"pos_embed", "cls_token", "norm.weight", "head.bias", "blocks.1.attn.qkv.bias"}


def test_rates_of_a_resnet_halve_from_block_to_block():
    group = rates("resnet10t", {})
    scale = {name: group["lr_scale"] for name, group in group.items()}
    assert scale["fc.weight"] == 1
    assert [scale[f"layer{n}.0.conv1.weight"] for n in (4, 3, 2, 1)] == [0.5, 0.25, 0.125, 0.0625]
    assert scale["conv1.0.weight"] == 0.03125
    assert {g["lr_scale"] for g in rates("resnet10t", {}, decay=1.0).values()} == {1}


@pytest.mark.parametrize(
    ("encoder", "recipe"),
    [
        (lambda: tiny(), Recipe(**_QUICK)),
        (lambda: tiny("vit_tiny_patch16_224", **_VIT), Recipe(**_QUICK | dict(epochs=12))),
        (lambda: tiny(), FewLabels(batch_size=16, min_scale=0.5, epochs=6, min_steps=0, lr=0.5)),
    ],
    ids=["resnet", "vit", "few labels"],
)
def test_it_learns_and_leaves_the_encoder_as_it_was(encoder, recipe):
    start, images, test = encoder(), stripes(48, 0), stripes(32, 1)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    losses = []
    state = torch.get_rng_state()
    tuned = fine_tune(start, images, torch.arange(48), 2, recipe, progress=lambda *step: losses.append(step))
    assert torch.equal(torch.get_rng_state(), state)
    assert [step[:2] for step in losses] == [(n + 1, recipe.epochs) for n in range(recipe.epochs)]
    assert losses[-1][2] < losses[0][2]
    assert classifier_accuracy(tuned, [test.__getitems__(range(32))]) > 0.85
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())


def test_the_same_seed_gives_the_same_weights_and_only_chosen_images_count():
    start, images = tiny(), stripes(24, 0)
    recipe = Recipe(epochs=2, batch_size=8)
    places = torch.arange(0, 24, 2)
    first = fine_tune(start, images, places, 2, recipe, seed=1)
    images.images[1::2] = 0
    images.labels[1::2] = -1
    again = fine_tune(start, images, places, 2, recipe, seed=1)
    other = fine_tune(start, images, places, 2, recipe, seed=2)
    weight = [encoder.backbone.fc.weight for encoder in (first, again, other)]
    assert torch.equal(weight[0], weight[1])
    assert not torch.equal(weight[0], weight[2])


def test_few_images_get_enough_steps():
    steps = []
    recipe = Recipe(epochs=1, min_steps=5, batch_size=4)
    fine_tune(tiny(), stripes(9, 0), torch.arange(9), 2, recipe, progress=lambda *step: steps.append(step))
    assert steps[-1][:2] == (3, 3)  # of two steps each


def test_half_the_epochs_from_five_percent_on():
    few = FewLabels()
    assert (few.recipe(0.01).epochs, few.recipe(0.1).epochs) == (60, 30)
    assert few.recipe(0.1).optimizer == "sgd"


def test_drop_path_reaches_the_model():
    recipe = Recipe(epochs=1, batch_size=8, drop_path=0.2)
    tuned = fine_tune(tiny("vit_tiny_patch16_224", **_VIT), stripes(8, 0), torch.arange(8), 2, recipe)
    assert tuned.backbone.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("name", "kwargs", "last"), [("test_resnet", {}, "fc"), ("vit_tiny_patch16_224", _VIT, "head")]
)
def test_from_inside_the_projection_head(name, kwargs, last):
    """Its first layers, with what their BatchNorm has seen, stand below the classifier, and are trained with it."""
    start, images = tiny(name, **kwargs), stripes(16, 0)
    start.projection = ProjectionHead(start.num_features, 10, 4, layers=3)
    start.projection(torch.randn(50, start.num_features))  # statistics that a new one would not have
    start.eval()
    x = start.transform(images.images)
    quick = dict(batch_size=16, epochs=1, drop_path=0.0)
    for layers, width in ((1, 3), (2, 6)):
        still = fine_tune(start, images, torch.arange(16), 2, Recipe(head_layers=layers, lr=0.0, **quick)).eval()
        kept, classifier = getattr(still.backbone, last)
        assert len(kept) == width
        for module, original in zip(kept, start.projection, strict=False):
            assert all(torch.equal(a, b) for a, b in zip(module.parameters(), original.parameters(), strict=True))
        assert kept[1].num_batches_tracked == 2  # one of the head's own, one of this step
        assert classifier.in_features == 10
    before = {name: value.clone() for name, value in start.state_dict().items()}
    tuned = fine_tune(start, images, torch.arange(16), 2, Recipe(head_layers=1, lr=0.1, **quick)).eval()
    assert tuned(x).shape == (16, 2)
    kept, _ = getattr(tuned.backbone, last)
    assert not torch.equal(kept[0].weight, start.projection[0].weight)
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())
    groups = layer_groups(tuned.backbone, 0.5, 0.05)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scale[id(kept[0].weight)] == 1


def test_a_head_that_cannot_be_kept_is_named():
    start, images = tiny(), stripes(8, 0)
    start.projection = ProjectionHead(start.num_features, 10, 4)
    with pytest.raises(ValueError, match="layers must be from 1 to 1, the head's hidden layers, got 2"):
        fine_tune(start, images, torch.arange(8), 2, Recipe(head_layers=2))
    start.projection = DINOHead(start.num_features, 16)
    with pytest.raises(ValueError, match="head_layers must be 0, the projection of test_resnet is a DINOHead; got 1"):
        fine_tune(start, images, torch.arange(8), 2, Recipe(head_layers=1))
    start.projection = None  # an untrained line beside: from h
    tuned = fine_tune(start, images, torch.arange(8), 2, Recipe(head_layers=1, epochs=1, batch_size=8))
    assert tuned.backbone.fc.in_features == start.num_features


def test_unknown_labels_do_not_count_in_the_accuracy():
    batch = stripes(10, 0).__getitems__(range(10))
    tuned = fine_tune(tiny(), stripes(8, 0), torch.arange(8), 2, Recipe(epochs=1, batch_size=8))
    known = Batch(batch.image[:6], batch.label[:6], batch.index[:6])
    half = Batch(batch.image, torch.where(torch.arange(10) < 6, batch.label, -1), batch.index)
    assert classifier_accuracy(tuned, [half]) == pytest.approx(classifier_accuracy(tuned, [known]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(optimizer="lamb"), 'optimizer must be "adamw" or "sgd", got \'lamb\''),
        (dict(layer_decay=0.0), "layer_decay must be above 0 and at most 1, got 0.0"),
        (dict(batch_size=1), "batch_size must be at least 2, got 1"),
        (dict(head_layers=-1), "head_layers must be at least 0, got -1"),
        (dict(warmup=1.0), "warmup must be at least 0 and below 1, got 1.0"),
    ],
)
def test_a_bad_argument_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


def test_bad_fractions_are_named():
    with pytest.raises(ValueError, match=r"fractions must be above 0 and at most 1, got \[0.1, 1.5\]"):
        FewLabels(fractions=[0.1, 1.5])
