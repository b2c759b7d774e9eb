"""Masked image modelling against transformers' MAE, against hand arithmetic, and by perturbation."""

import pydoc

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from tiny_mim import GRID, TARGETS, tiny_model

from implantdet.config import add_implantdet_config
from implantdet.data.unlabelled import UnlabelledMapper
from implantdet.modeling.masked_image_model import MaskedImageModel
from implantdet.modeling.mim_masking import PatchMask, sample_mask
from implantdet.modeling.mim_targets import EncoderTarget, build_target, patchify, standardize


def images_of(seed, num=2, in_chans=1, size=(64, 64)):
    return torch.randn(num, in_chans, *size, generator=torch.Generator().manual_seed(seed))


def mask_of(seed, num=2, ratio=0.75):
    return sample_mask(num, GRID, ratio, generator=torch.Generator().manual_seed(seed))


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# --- parity with transformers.ViTMAEForPreTraining


def reference_mae(model, norm_pix_loss, in_chans):
    """The same network in transformers, with the weights of ``model``."""
    import transformers  # here, since it is large and only this reference needs it

    config = transformers.ViTMAEConfig(
        **{"image_size": 64, "num_channels": in_chans, "hidden_size": 64, "num_hidden_layers": 6},
        **{"num_attention_heads": 2, "intermediate_size": 192, "decoder_hidden_size": 32, "layer_norm_eps": 1e-6},
        **{"decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4, "decoder_intermediate_size": 128},
        **{"norm_pix_loss": norm_pix_loss, "mask_ratio": 0.75},
    )
    reference = transformers.ViTMAEForPreTraining(config)
    state = {their_name(name): value for name, value in split_qkv(model.state_dict()).items()}
    # transformers leaves the decoder's fixed positions at zero in a model that is not loaded from the hub.
    state["decoder.decoder_pos_embed"] = mae_positions(*GRID, 32)
    incompatible = reference.load_state_dict(state)
    assert not incompatible.missing_keys and not incompatible.unexpected_keys
    return reference.train()


def split_qkv(state):
    """Queries, keys and values under a key each, as transformers has them."""
    split = {}
    for name, value in state.items():
        if ".qkv." in name:
            split |= {name.replace("qkv", f"{part}_proj"): x for part, x in zip("qkv", value.chunk(3), strict=True)}
        else:
            split[name] = value
    return split


def their_name(name):
    name = name.replace("backbone.net.", "vit.")
    for ours, theirs in (
        ("vit.cls_token", "vit.embeddings.cls_token"),
        ("vit.pos_embed", "vit.embeddings.position_embeddings"),
        ("vit.patch_embed.proj", "vit.embeddings.patch_embeddings.projection"),
        ("vit.norm.", "vit.layernorm."),
        ("vit.blocks", "vit.layers"),
        ("decoder.embed", "decoder.decoder_embed"),
        ("decoder.blocks", "decoder.decoder_layers"),
        ("decoder.norm.", "decoder.decoder_norm."),
        ("decoder.pred", "decoder.decoder_pred"),
        (".norm1.", ".layernorm_before."),
        (".norm2.", ".layernorm_after."),
        (".attn.proj.", ".attention.o_proj."),
        (".attn.", ".attention."),
    ):
        name = name.replace(ours, theirs)
    return name


def mae_positions(height, width, dim):
    """MAE's published formula, in transformers' words: [sin_w | cos_w | sin_h | cos_h], a zero row for the class."""
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [axis.flatten().double().outer(omega) for axis in (cols, rows)]
    patches = torch.cat([f(wave) for wave in waves for f in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(1, dim), patches.float()]).unsqueeze(0)


@pytest.mark.parametrize(("norm_target", "in_chans"), [(True, 1), (False, 3)])
def test_pixel_loss_and_gradients_are_those_of_transformers(norm_target, in_chans):
    model = tiny_model("pixel", in_chans=in_chans, norm_target=norm_target)
    assert torch.allclose(model.encoder.pos_embed, mae_positions(*GRID, 64), atol=1e-6)
    reference = reference_mae(model, norm_target, in_chans)
    images = images_of(1, in_chans=in_chans)
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(2))
    order = noise.argsort(dim=1)  # transformers keeps the patches with the least noise

    loss = model.losses(images, PatchMask(order[:, :4], order[:, 4:]))["loss_mim"]
    expected = reference(pixel_values=images, noise=noise).loss
    assert abs(loss - expected) < 1e-5
    loss.backward()
    expected.backward()

    theirs = gradients(reference)
    ours = {their_name(name): grad for name, grad in split_qkv(gradients(model)).items()}
    assert ours.keys() == theirs.keys()
    for name, grad in ours.items():
        assert torch.allclose(grad, theirs[name], atol=1e-5), name
    assert max(grad.abs().max() for grad in theirs.values()) > 1e-2  # the comparison is not one of zeros


# --- what the loss and the encoder see


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("depth", [0, 2])
def test_loss_sees_targets_of_masked_patches_only(target, depth, monkeypatch):
    model, images, mask = tiny_model(target, depth=depth), images_of(1), mask_of(1)
    before = model.losses(images, mask)["loss_mim"]
    targets = model.targets(images)

    def change(indices):
        changed = targets.clone()
        changed[torch.arange(2).unsqueeze(1), indices] += 1.0
        monkeypatch.setattr(model, "targets", lambda _: changed)
        return model.losses(images, mask)["loss_mim"]

    assert torch.equal(change(mask.visible), before)
    assert not torch.equal(change(mask.masked[:, :1]), before)


@pytest.mark.parametrize("depth", [0, 2])
def test_pixels_of_masked_patches_do_not_reach_the_predictions(depth):
    model, images, mask = tiny_model(depth=depth), images_of(1), mask_of(1)
    before, _ = model.predict(images, mask)
    patch = int(mask.masked[0, 0])
    row, col = 16 * (patch // 4), 16 * (patch % 4)
    changed = images.clone()
    changed[0, :, row : row + 16, col : col + 16] += 10.0
    assert torch.equal(model.predict(changed, mask)[0], before)
    # The test can fail: a visible patch does reach them.
    patch = int(mask.visible[0, 0])
    row, col = 16 * (patch // 4), 16 * (patch % 4)
    changed[0, :, row : row + 16, col : col + 16] += 10.0
    assert not torch.equal(model.predict(changed, mask)[0], before)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("norm_target", [True, False])
def test_no_gradient_flows_through_the_target(target, norm_target):
    """The gradient is that of a loss against a constant."""
    model, images, mask = tiny_model(target, norm_target=norm_target), images_of(1), mask_of(1)
    constant = model.targets(images)
    assert not constant.requires_grad
    model.losses(images, mask)["loss_mim"].backward()
    flowing = gradients(model)
    model.zero_grad()
    predictions, _ = model.predict(images, mask)
    wanted = torch.stack([constant[n, mask.masked[n]] for n in range(2)])
    ((predictions - wanted) ** 2).mean().backward()
    for name, grad in gradients(model).items():
        assert torch.allclose(flowing[name], grad, atol=1e-7), name
    assert flowing.keys() == gradients(model).keys()
    assert not any("teacher" in name for name in flowing)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_every_encoder_parameter_learns(depth):
    """Also with the linear head: the mask tokens pass through the encoder."""
    model = tiny_model("patch_embed", depth=depth)
    model.losses(images_of(1), mask_of(1))["loss_mim"].backward()
    learning = {name for name, grad in gradients(model).items() if grad.abs().max() > 0}
    frozen = {name for name, _ in model.named_parameters()} - learning
    assert frozen == {"backbone.net.pos_embed"}


# --- losses by hand


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [
        ("l1", lambda error: error.abs().mean()),
        ("l2", lambda error: (error**2).mean()),
        ("smooth_l1", lambda e: torch.where(e.abs() < 1, e**2 / 2, e.abs() - 0.5).mean()),
    ],
)
def test_losses_by_hand(loss, by_hand):
    model, images, mask = tiny_model("patch_embed", loss=loss, pixel_weight=0.25), images_of(1), mask_of(1)
    predictions, pixels = model.predict(images, mask)
    embeddings = standardize(model.encoder.patch_embed(images).flatten(1, 2))
    wanted = torch.stack([embeddings[n, mask.masked[n]] for n in range(2)])
    patches = torch.stack([standardize(patchify(images))[n, mask.masked[n]] for n in range(2)])
    losses = model.losses(images, mask)
    assert losses.keys() == {"loss_mim", "loss_pixel"}
    assert torch.allclose(losses["loss_mim"], by_hand(predictions - wanted))
    assert torch.allclose(losses["loss_pixel"], 0.25 * ((pixels - patches) ** 2).mean())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("depth", [0, 2])
def test_mixed_precision_changes_little(target, depth):
    model, images, mask = tiny_model(target, depth), images_of(1), mask_of(1)
    exact = model.losses(images, mask)["loss_mim"]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.losses(images, mask)["loss_mim"]
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.01)
    assert rounded != exact
    rounded.backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())


def test_ratio_zero_is_a_plain_autoencoder():
    model, images = tiny_model(mask_ratio=0.0), images_of(1)
    mask = sample_mask(2, GRID, 0.0)
    assert mask.masked.shape == (2, 0)
    predictions, _ = model.predict(images, mask)
    wanted = torch.stack([model.targets(images)[n, mask.visible[n]] for n in range(2)])
    loss = model.losses(images, mask)["loss_mim"]
    assert torch.allclose(loss, ((predictions - wanted) ** 2).mean())
    loss.backward()
    assert torch.isfinite(torch.stack([grad.sum() for grad in gradients(model).values()])).all()


def test_ratio_095_keeps_one_patch():
    model = tiny_model(mask_ratio=0.95).train()
    loss = model([{"image": torch.rand(1, 64, 64) * 255}] * 2)["loss_mim"]
    loss.backward()
    assert sample_mask(2, GRID, 0.95).visible.shape == (2, 1)
    assert torch.isfinite(loss)


# --- images of any size, channels


@pytest.mark.parametrize(("size", "in_chans"), [((64, 64), 3), ((48, 96), 1), ((16, 32), 3), ((160, 32), 1)])
@pytest.mark.parametrize("target", TARGETS)
def test_any_size_that_the_patch_divides(size, in_chans, target):
    model = tiny_model(target, in_chans=in_chans).train()
    loss = model([{"image": torch.rand(in_chans, *size) * 255}] * 2)["loss_mim"]
    loss.backward()
    assert torch.isfinite(loss)


def test_images_of_other_sizes_are_refused():
    model = tiny_model().train()
    with pytest.raises(ValueError, match=r"sizes \[\(1, 48, 64\), \(1, 64, 64\)\] in one batch") as raised:
        model([{"image": torch.rand(1, 64, 64)}, {"image": torch.rand(1, 48, 64)}])
    assert pydoc.locate(str(raised.value).rpartition(" ")[-1]) is UnlabelledMapper  # it says what to use
    with pytest.raises(ValueError, match="40 × 64 pixels, expected multiples of 16"):
        model([{"image": torch.rand(1, 40, 64)}])


@pytest.mark.parametrize(("channels", "in_chans"), [(3, 1), (1, 3)])
def test_images_of_other_channels_are_refused(channels, in_chans):
    for model in (tiny_model(in_chans=in_chans).train(), tiny_model(in_chans=in_chans).eval()):
        with pytest.raises(ValueError, match=f"with {channels} channels, expected {in_chans}, as MODEL.PIXEL_MEAN has"):
            model([{"image": torch.rand(channels, 64, 64)}])


def test_without_layers_the_target_is_the_mean_of_all_blocks():
    encoder, images = tiny_model().encoder, images_of(2)
    found = EncoderTarget(encoder, layers=[], decay=0.9)(images, encoder)
    torch.testing.assert_close(found, EncoderTarget(encoder, range(6), 0.9)(images, encoder), rtol=0, atol=0)


@pytest.mark.parametrize("block", [1, 2])
def test_images_are_normalised_and_masks_are_seeded(block):
    model, images = tiny_model(mask_block=block, mask_ratio=0.5).train(), images_of(3) * 50 + 100
    inputs = [{"image": image} for image in images]
    torch.manual_seed(7)
    loss = model(inputs)["loss_mim"]
    torch.manual_seed(7)
    expected = model.losses((images - 100) / 50, sample_mask(2, GRID, 0.5, block))["loss_mim"]
    assert torch.equal(loss, expected)
    assert not torch.equal(model(inputs)["loss_mim"], loss)


def test_hidden_squares_of_an_evaluation_are_as_large_as_the_config_says():
    mask = tiny_model(mask_block=2, mask_ratio=0.5).eval().inference(torch.rand(1, 64, 64))["mask"]
    squares, patches = (
        sample_mask(1, GRID, 0.5, block, generator=torch.Generator().manual_seed(0)).masked for block in (2, 1)
    )
    assert torch.equal(mask.masked, squares) and not torch.equal(mask.masked, patches)


# --- configuration


def test_from_config():
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "MaskedImageModel", "MODEL.PIXEL_MEAN", "[1.0]"])
    cfg.merge_from_list(["MODEL.PIXEL_STD", "[2.0]", "MODEL.VIT.NAME", "test_vit", "MODEL.VIT.IMG_SIZE", "32"])
    cfg.merge_from_list(["MODEL.MIM.TARGET", "encoder", "MODEL.MIM.TARGET_LAYERS", "[3]", "MODEL.MIM.LOSS", "l1"])
    cfg.merge_from_list(["MODEL.MIM.PIXEL_WEIGHT", "0.5", "MODEL.MIM.DECODER_DEPTH", "0", "MODEL.DEVICE", "cpu"])
    cfg.merge_from_list(["MODEL.MIM.NORM_TARGET", "False", "MODEL.MIM.MASK_RATIO", "0.5", "MODEL.MIM.MASK_BLOCK", "2"])
    model = build_model(cfg).train()
    assert (model.norm_target, model.mask_ratio, model.mask_block, model.pixel_weight) == (False, 0.5, 2, 0.5)
    assert model.loss is F.l1_loss
    assert model.target.layers == (3,) and model.target.decay == cfg.MODEL.MIM.EMA_DECAY
    assert isinstance(model, MaskedImageModel)
    assert model([{"image": torch.rand(1, 32, 32)}]).keys() == {"loss_mim", "loss_pixel"}
    assert model.decoder.pred.out_features == 64 + 256
    assert all(name.split(".")[0] in ("backbone", "decoder", "target") for name in model.state_dict())
    cfg.merge_from_list(["MODEL.MIM.DECODER_DEPTH", "3", "MODEL.MIM.DECODER_DIM", "24", "MODEL.MIM.DECODER_HEADS", "6"])
    decoder = build_model(cfg).decoder
    assert (len(decoder.blocks), decoder.embed.out_features, decoder.blocks[0].attn.num_heads) == (3, 24, 6)


@pytest.mark.parametrize("target", ["patch_embed", "encoder"])
def test_targets_are_standardised_if_they_are_to_be(target):
    images = images_of(1)
    raw = tiny_model(target, norm_target=False).targets(images)
    assert raw.std(dim=-1).sub(1).abs().max() > 0.005
    centred = raw - raw.mean(dim=-1, keepdim=True)
    expected = centred / (centred.square().sum(dim=-1, keepdim=True) / (raw.shape[-1] - 1) + 1e-6).sqrt()
    torch.testing.assert_close(tiny_model(target, norm_target=True).targets(images), expected)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"loss": "l3"}, "MODEL.MIM.LOSS: found 'l3', expected one of l1, l2, smooth_l1"),
        ({"mask_ratio": 1.0}, r"MODEL.MIM.MASK_RATIO: found 1.0, expected a number in \[0, 0.95\]"),
        ({"mask_block": 0}, "MODEL.MIM.MASK_BLOCK: found 0"),
        ({"pixel_weight": 1.0}, "MODEL.MIM.PIXEL_WEIGHT: found 1.0, expected >= 0, and 0 if TARGET is 'pixel'"),
        ({"depth": -1}, "found DECODER_DEPTH -1"),
        ({"target": "encoder", "layers": [6]}, r"MODEL.MIM.TARGET_LAYERS: found \[6\], expected .* 0 to 5"),
        ({"target": "encoder", "ema_decay": 1.0}, "MODEL.MIM.EMA_DECAY: found 1.0"),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**kwargs)


def test_unknown_target_is_named():
    with pytest.raises(ValueError, match=r"MODEL\.MIM\.TARGET: found 'hog'"):
        build_target("hog", None, 1, [], 0.9)
