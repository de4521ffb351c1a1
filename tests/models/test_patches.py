"""What a backbone says about patches: the attention that the last block computes, and features in their places."""

import pytest
import timm
import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from fastssl.models.patches import patch_attention, patch_features, whole_patches

_SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 3, "num_classes": 0}


def randomize(model):
    """Weights large enough for attention to be far from uniform."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.double().eval()


def unfused(model, x):
    """What the last block multiplies its values with, by timm's own code without fused attention, [B, heads, N, N]."""
    for block in model.blocks:
        block.attn.fused_attn = False
    seen = []
    handle = model.blocks[-1].attn.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        model.forward_features(x)
    handle.remove()
    return seen[-1]


MODELS = {
    "plain": lambda: VisionTransformer(**_SMALL, depth=2),
    "registers and norms": lambda: VisionTransformer(**_SMALL, depth=2, reg_tokens=2, qk_norm=True),
    "bias of positions": lambda: Beit(**_SMALL, depth=2, use_rel_pos_bias=True, init_values=0.1),
    "rotary": lambda: Eva(**_SMALL, depth=2, use_rot_pos_emb=True),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fused", [True, False])
def test_attention_is_what_the_last_block_computes(name, fused):
    model, x = randomize(MODELS[name]()), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    direct = unfused(model, x)[:, :, 0]
    for block in model.blocks:
        block.attn.fused_attn = fused
    found = patch_attention(model, x)
    torch.testing.assert_close(found.weights, direct, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    assert found.of_class_token and found.prefix == model.num_prefix_tokens and found.grid == (4, 4)
    assert torch.equal(found.maps, found.weights[..., found.prefix :].reshape(2, 3, 4, 4))
    assert direct.std() > 0.005  # a uniform answer would be wrong


def test_attention_in_float32_is_that_of_float64():
    model, x = randomize(MODELS["plain"]()), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    truth = patch_attention(model, x).weights
    found = patch_attention(model.float(), x.float()).weights
    torch.testing.assert_close(found, truth.float(), rtol=1e-3, atol=1e-5)


def test_without_a_class_token_it_is_the_mean_of_all():
    model = randomize(VisionTransformer(**_SMALL, depth=2, class_token=False, global_pool="avg"))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    found = patch_attention(model, x)
    assert not found.of_class_token and found.prefix == 0
    torch.testing.assert_close(found.weights, unfused(model, x).mean(2), rtol=1e-10, atol=1e-12)


def test_a_model_is_left_as_it_was():
    model = VisionTransformer(**_SMALL, depth=2).train()
    model.blocks[0].attn.fused_attn = False
    patch_attention(model, torch.randn(1, 3, 32, 32))
    patch_features(model, torch.randn(1, 3, 32, 32))
    assert model.training and model.blocks[0].training
    assert [block.attn.fused_attn for block in model.blocks] == [
        False,
        VisionTransformer(**_SMALL).blocks[0].attn.fused_attn,
    ]


def test_rows_and_columns_are_not_mixed_up():
    model = VisionTransformer(**_SMALL, depth=1, dynamic_img_size=True)
    x = torch.randn(1, 3, 32, 16)
    assert patch_attention(model, x).grid == (4, 2)
    assert patch_features(model, x).shape == (1, 4, 2, 24)


@pytest.mark.parametrize("name", ["test_resnet", "swin_s3_tiny_224"])
def test_a_model_without_attention_between_all_patches_is_refused(name):
    with pytest.raises(ValueError, match=r"the backbone must be a vision transformer, got (ResNet|SwinTransformer)"):
        patch_attention(timm.create_model(name, num_classes=0), torch.randn(1, 3, 224, 224))


def test_features_stand_where_their_patches_are():
    model = VisionTransformer(**_SMALL, depth=1, reg_tokens=2).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = model.forward_features(x)
    assert torch.equal(patch_features(model, x), tokens[:, 3:].reshape(2, 4, 4, 24))


def test_features_of_a_convolutional_network_are_its_last_map():
    model = timm.create_model("test_resnet", num_classes=0).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        last = model.forward_features(x)
    features = patch_features(model, x)
    assert features.shape == (2, *last.shape[2:], last.shape[1])
    assert torch.equal(features[1, 1, 2], last[1, :, 1, 2])


def test_sizes_are_whole_patches():
    model = VisionTransformer(**_SMALL, depth=1)
    assert [whole_patches(model, size) for size in (8, 15, 480)] == [8, 8, 480]
    assert whole_patches(timm.create_model("test_resnet"), 17) == 17
    with pytest.raises(ValueError, match="size must be at least 8, the side of a patch of the backbone, got 7"):
        whole_patches(model, 7)
