"""Targets by hand, and the moving average of the encoder."""

import torch
import torch.nn.functional as F

from implantdet.modeling.mim_targets import EncoderTarget, PatchEmbedTarget, patchify, standardize, unpatchify
from implantdet.modeling.vit import ViT


def tiny_vit(seed=0, **kwargs):
    torch.manual_seed(seed)
    return ViT(name="test_vit", img_size=64, in_chans=1, **kwargs)


def test_patchify_by_hand():
    images = torch.arange(2 * 3 * 32 * 48).reshape(2, 3, 32, 48)
    patches = patchify(images)
    assert patches.shape == (2, 6, 768)
    # Second row of patches, third column: the pixel (row 1, column 2) of that patch in channel 1.
    assert patches[1, 5, (1 * 16 + 2) * 3 + 1] == images[1, 1, 17, 34]
    assert torch.equal(unpatchify(patches, (2, 3)), images)


def test_standardize_by_hand():
    targets = torch.tensor([[[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]])
    # Mean 2, and variance ((-1)² + 0² + 1²) / 2 = 1; a constant target stays finite.
    expected = torch.tensor([[[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]])
    assert torch.allclose(standardize(targets), expected, atol=1e-5)


def test_patch_embed_target_is_a_matrix_product():
    vit, images = tiny_vit(), torch.randn(2, 1, 64, 64)
    weight = vit.patch_embed.proj.weight.flatten(1)
    expected = patchify(images) @ weight.T + vit.patch_embed.proj.bias
    assert torch.allclose(PatchEmbedTarget(64)(images, vit), expected, atol=1e-5)


def test_encoder_target_averages_standardised_layers():
    vit, images = tiny_vit(), torch.randn(2, 1, 64, 64)
    tokens, _ = vit.embed_patches(images)
    outputs = {}
    for index in (1, 4):
        vit.blocks[index].register_forward_hook(lambda _m, _i, out, index=index: outputs.update({index: out[:, 1:]}))
    target = EncoderTarget(tiny_vit(), [1, 4], 0.9)
    vit.encode(tokens)
    expected = (F.layer_norm(outputs[1], (64,)) + F.layer_norm(outputs[4], (64,))) / 2
    student = tiny_vit(1)  # its own embeddings are others: the target is the teacher's
    assert torch.allclose(target(images, student), expected, atol=1e-6)


def test_moving_average_by_hand():
    vit = tiny_vit()
    target = EncoderTarget(tiny_vit(1), [5], 0.75)
    target.update(vit, 0)
    name, weight = "blocks.2.mlp.fc1.weight", vit.blocks[2].mlp.fc1.weight
    start = weight.detach().clone()
    assert torch.equal(target.state_dict()[f"teacher.{name}"], start)
    with torch.no_grad():
        weight.add_(1.0)
    target.update(vit, 1)
    assert torch.allclose(target.state_dict()[f"teacher.{name}"], start + 0.25, atol=1e-6)
    target.update(vit, 2)
    assert torch.allclose(target.state_dict()[f"teacher.{name}"], start + 0.4375, atol=1e-6)


def test_teacher_is_never_in_training_mode_and_never_trained():
    target = EncoderTarget(tiny_vit(drop_path_rate=0.5), [5], 0.9).train()
    assert not any(module.training for module in target.modules())
    assert not any(parameter.requires_grad for parameter in target.parameters())
