import pytest
import timm
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec

from implantdet.config import add_implantdet_config
from implantdet.modeling.vit import ViT

# timm's own test models: class token; register token and no class token; the same with a pooling head.
SMALL = ("test_vit", "test_vit2", "test_vit3")


def build(name="test_vit", img_size=64, in_chans=1, **options):
    torch.manual_seed(0)
    return ViT(name=name, img_size=img_size, in_chans=in_chans, **options)


def timm_twin(vit, name, **options):
    """The model of timm with this name and the same weights, and whatever it has beyond the encoder."""
    twin = timm.create_model(
        name, img_size=vit.patch_embed.img_size, in_chans=vit.patch_embed.proj.in_channels, **options
    )
    incompatible = twin.load_state_dict(vit.state_dict(), strict=False)
    assert not incompatible.unexpected_keys
    assert all(key.startswith(("head.", "fc_norm.", "attn_pool.")) for key in incompatible.missing_keys)
    return twin.eval()


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "in_chans"),
    # deit3 has no position for its class token, CLIP's models a norm before the blocks.
    [
        *((name, channels) for name in SMALL for channels in (1, 3)),
        ("deit3_small_patch16_224", 1),
        ("vit_xsmall_patch16_clip_224", 1),
    ],
)
def test_features_are_timms_own(name, in_chans):
    vit = build(name, in_chans=in_chans).eval()
    images = torch.randn(2, in_chans, 64, 64)
    expected = timm_twin(vit, name).forward_features(images)[:, vit.num_prefix_tokens :]
    features = vit(images)["last_feat"]
    assert features.shape == (2, vit.embed_dim, 4, 4)
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), expected, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(96, 160), (32, 64), (48, 16)])
def test_positions_are_interpolated_like_timms(name, size):
    vit = build(name).eval()
    images = torch.randn(2, 1, *size)
    twin = timm_twin(vit, name, dynamic_img_size=True)
    expected = twin.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0]
    torch.testing.assert_close(vit(images)["last_feat"], expected, rtol=0, atol=1e-6)


def test_output_shape_is_declared():
    vit = build("vit_tiny_patch16_224")
    assert vit.output_shape() == {"last_feat": ShapeSpec(channels=192, stride=16)}


def test_the_feature_map_is_channels_last():
    assert build()(torch.randn(1, 1, 64, 96))["last_feat"].stride(1) == 1


@torch.no_grad()
@pytest.mark.parametrize("window_size", [0, 2])
def test_a_subset_of_tokens_is_encoded_as_by_timms_blocks(window_size):
    vit = build("test_vit", window_size=window_size).eval()
    twin = timm_twin(vit, "test_vit", dynamic_img_size=True)
    images = torch.randn(2, 1, 64, 64)
    visible = torch.tensor([9, 2, 14])
    tokens, grid = vit.embed_patches(images)
    assert grid == (4, 4)
    embedded = twin._pos_embed(twin.patch_embed(images))
    expected = twin.norm(twin.blocks(torch.cat([embedded[:, :1], embedded[:, 1 + visible]], dim=1)))
    torch.testing.assert_close(vit.encode(tokens[:, visible]), expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_all_tokens_encoded_give_the_detectors_features():
    """Pre-training encodes tokens, detection encodes images: the same features come out."""
    vit = build("test_vit").eval()
    images = torch.randn(2, 1, 64, 96)
    encoded = vit.encode(vit.embed_patches(images)[0])[:, 1:]
    torch.testing.assert_close(vit(images)["last_feat"].flatten(2).transpose(1, 2), encoded, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_a_window_over_the_whole_image_is_global_attention(name):
    images = torch.randn(2, 1, 64, 48)
    windowed, everywhere = build(name, window_size=4).eval(), build(name).eval()
    torch.testing.assert_close(windowed(images), everywhere(images), rtol=0, atol=1e-5)


@torch.no_grad()
def test_windows_are_crops_that_the_blocks_see_alone():
    """5 × 7 patches in windows of at most 3: rows 0–2, 3–4, columns 0–2, 3–4, 5–6. The last block is global."""
    vit = build(window_size=3, global_blocks=[5]).eval()
    tokens, grid = vit.embed_patches(torch.randn(2, 1, 80, 112))
    prefix = vit.cls_token.expand(2, -1, -1) + vit.pos_embed[:, :1]
    patches = tokens.unflatten(1, grid)
    expected, prefix_copies = torch.empty_like(patches), []
    for rows in (slice(0, 3), slice(3, 5)):
        for cols in (slice(0, 3), slice(3, 5), slice(5, 7)):
            crop = patches[:, rows, cols]
            out = vit.blocks[:5](torch.cat([prefix, crop.flatten(1, 2)], dim=1))
            expected[:, rows, cols] = out[:, 1:].reshape(crop.shape)
            prefix_copies.append(out[:, :1])
    joined = torch.cat([torch.stack(prefix_copies).mean(0), expected.flatten(1, 2)], dim=1)
    expected = vit.norm(vit.blocks[5](joined))
    torch.testing.assert_close(vit.encode(tokens, grid), expected, rtol=0, atol=1e-5)


def test_only_tokens_of_its_own_window_influence_a_token():
    vit = build(window_size=3).eval()
    tokens, grid = vit.embed_patches(torch.randn(1, 1, 80, 112))
    tokens = tokens.detach().requires_grad_()
    encoded = vit.encode(tokens, grid)[:, 1:].unflatten(1, grid)
    # The window in the corner: rows 3–4, columns 5–6. A plain sum after the norm is constant: it has no gradient.
    (encoded[0, 4, 6] * torch.randn(vit.embed_dim)).sum().backward()
    influence = tokens.grad.unflatten(1, grid)[0].abs().sum(-1) > 0
    expected = torch.zeros(grid, dtype=torch.bool)
    expected[3:5, 5:7] = True
    assert torch.equal(influence, expected)


def test_checkpointing_gives_the_same_gradients():
    images = torch.randn(2, 1, 64, 96)
    gradients = []
    for checkpointing in (False, True):
        vit = build(drop_path_rate=0.5, window_size=3, global_blocks=[2], checkpointing=checkpointing).train()
        torch.manual_seed(1)  # the same paths are dropped, in the recomputation too
        vit(images)["last_feat"].square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in vit.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


def test_checkpointing_recomputes_the_blocks():
    vit = build(checkpointing=True).train()
    calls = []
    vit.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    features = vit(torch.randn(1, 1, 64, 64))["last_feat"]
    assert len(calls) == 1
    features.sum().backward()
    assert len(calls) == 2
    with torch.no_grad():
        vit(torch.randn(1, 1, 64, 64))
    assert len(calls) == 3


def test_drop_path_grows_to_its_rate():
    vit = build(drop_path_rate=0.25)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in vit.blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2, 0.25])


def test_an_empty_batch_has_gradients():
    vit = build(window_size=3)
    vit(torch.randn(0, 1, 64, 80))["last_feat"].sum().backward()
    assert all(not parameter.grad.any() for parameter in vit.parameters())


@torch.no_grad()
def test_bfloat16_on_the_cpu_is_close():
    vit = build(window_size=3, global_blocks=[5]).eval()
    images = torch.randn(2, 1, 64, 80)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = vit(images)["last_feat"].float()
    expected = vit(images)["last_feat"]
    assert (features - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_a_model_with_other_patches_is_built_with_patches_of_16():
    vit = build("vit_small_patch14_dinov2", img_size=64)
    assert vit.patch_embed.proj.kernel_size == (16, 16)
    assert vit(torch.randn(1, 1, 64, 64))["last_feat"].shape == (1, 384, 4, 4)


def test_from_config():
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.MODEL.VIT.NAME, cfg.MODEL.VIT.IMG_SIZE = "test_vit", 96
    cfg.MODEL.VIT.WINDOW_SIZE, cfg.MODEL.VIT.GLOBAL_BLOCKS = 3, [5]
    cfg.MODEL.VIT.CHECKPOINTING, cfg.MODEL.VIT.DROP_PATH_RATE = True, 0.3
    vit = ViT(cfg, ShapeSpec(channels=1))
    assert vit.patch_embed.grid_size == (6, 6)
    assert vit.patch_embed.proj.in_channels == 1
    assert (vit.window_size, vit.checkpointing) == (3, True)
    assert vit.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)
    assert vit._block_runs == [(True, 5), (False, 1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet50"}, "MODEL.VIT.NAME: found 'resnet50', expected a plain ViT"),
        ({"name": "vit_huge_patch1_7"}, "MODEL.VIT.NAME"),
        ({"name": "deit_tiny_distilled_patch16_224"}, "MODEL.VIT.NAME"),
        ({"img_size": 100}, "MODEL.VIT.IMG_SIZE: found 100, expected a positive multiple of 16"),
        ({"img_size": 0}, "MODEL.VIT.IMG_SIZE: found 0"),
        ({"global_blocks": [2, 6]}, r"MODEL.VIT.GLOBAL_BLOCKS: found \[6\].* 0 to 5"),
        ({"window_size": -1}, "MODEL.VIT.WINDOW_SIZE: found -1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_images_of_another_size_than_a_multiple_of_16():
    with pytest.raises(ValueError, match="found images of 300 × 500 pixels, expected multiples of 16"):
        build()(torch.randn(1, 1, 300, 500))
