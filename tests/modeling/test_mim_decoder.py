"""The decoder does less work than a plain one, and the same."""

import math

import pytest
import torch
from timm.models.vision_transformer import Block

from implantdet.modeling.mim_decoder import (
    LinearHead,
    TransformerDecoder,
    build_decoder,
    end_of_block,
    sine_cosine_positions,
)
from implantdet.modeling.mim_masking import PatchMask, sample_mask
from implantdet.modeling.vit import ViT


def tiny_vit():
    torch.manual_seed(0)
    return ViT(name="test_vit", img_size=64, in_chans=1)


@pytest.mark.parametrize("num_last", [1, 5, 9])
def test_end_of_block_is_the_end_of_a_block(num_last):
    torch.manual_seed(0)
    block = Block(32, 4, qkv_bias=True)
    tokens = torch.randn(2, 9, 32, requires_grad=True)
    weights = torch.randn(2, num_last, 32)
    expected = block(tokens)[:, -num_last:]
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), tokens)
    result = end_of_block(block, tokens, num_last)
    (gradient,) = torch.autograd.grad((result * weights).sum(), tokens)
    assert torch.allclose(result, expected, atol=1e-6)
    assert torch.allclose(gradient, expected_gradient, atol=1e-5)


def test_predictions_follow_the_mask():
    """Listing the same patches in another order reorders the predictions and does nothing else."""
    vit = tiny_vit()
    decoder = build_decoder(vit, 7, dim=32, depth=2, num_heads=4)
    tokens, grid = vit.embed_patches(torch.randn(2, 1, 64, 64))
    mask = sample_mask(2, grid, 0.75)
    shuffled = PatchMask(mask.visible.flip(1), mask.masked.flip(1))
    expected = decoder(vit, tokens, mask, grid)
    assert expected.shape == (2, 12, 7)
    assert torch.allclose(decoder(vit, tokens, shuffled, grid).flip(1), expected, atol=1e-5)


@pytest.mark.parametrize("grid", [(4, 4), (7, 5), (2, 4)])
def test_encoder_and_decoder_agree_about_places(grid):
    """In a decoder as wide as the encoder, both have the same positions on every grid."""
    vit = tiny_vit()
    vit.pos_embed.data[:, 1:] = sine_cosine_positions((4, 4), vit.embed_dim)
    decoder = build_decoder(vit, 7, dim=vit.embed_dim, depth=2, num_heads=4)
    assert torch.equal(decoder.positions(vit, grid), vit.positions(grid))
    with torch.no_grad():  # a token that is nothing but its place, and a head that shows it
        seen = []
        decoder.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        decoder.embed.weight.zero_(), decoder.embed.bias.zero_(), decoder.mask_token.zero_()
        tokens = torch.zeros(1, grid[0] * grid[1], vit.embed_dim)
        mask = sample_mask(1, grid, 0.5)
        decoder(vit, tokens, mask, grid)
    order = torch.cat([mask.visible, mask.masked], dim=1)[0]
    assert torch.equal(seen[0][0, 1:], vit.positions(grid)[0, order])


def test_linear_head_sends_mask_tokens_through_the_encoder():
    vit = tiny_vit()
    head = build_decoder(vit, 7, dim=32, depth=0, num_heads=4)
    assert isinstance(head, LinearHead)
    tokens, grid = vit.embed_patches(torch.randn(2, 1, 64, 64))
    mask = sample_mask(2, grid, 0.5)
    # The plain way: replace hidden patches in place, encode all, pick the hidden ones.
    replaced = tokens.clone()
    for n in range(2):
        replaced[n, mask.masked[n]] = (head.mask_token + vit.positions(grid))[0, mask.masked[n]]
    latent = vit.encode(replaced)[:, 1:]
    expected = torch.stack([head.pred(latent[n, mask.masked[n]]) for n in range(2)])
    assert torch.allclose(head(vit, tokens, mask, grid), expected, atol=1e-5)


def test_positions_tell_rows_from_columns():
    positions = sine_cosine_positions((2, 3), 8)[0]
    # Patch 4 is in row 1, column 1; patch 5 in row 1, column 2: the first half is about the column.
    assert torch.equal(positions[4, 4:], positions[5, 4:])
    assert torch.equal(positions[1, :4], positions[4, :4])
    expected = [math.sin(2.0), math.sin(0.02), math.cos(2.0), math.cos(0.02)]  # wavelengths 1 and 100
    assert torch.allclose(positions[5, :4], torch.tensor(expected))


@pytest.mark.parametrize(("dim", "depth", "heads"), [(30, 1, 3), (32, 1, 5), (32, -1, 4), (32, 1, 0), (0, 1, 1)])
def test_impossible_shapes_are_refused(dim, depth, heads):
    with pytest.raises(ValueError, match=f"DECODER_DEPTH {depth}, DECODER_DIM {dim} and DECODER_HEADS {heads}"):
        build_decoder(tiny_vit(), 7, dim, depth, heads)


def test_depth_counts_blocks():
    assert isinstance(build_decoder(tiny_vit(), 7, 32, 3, 4), TransformerDecoder)
    assert len(build_decoder(tiny_vit(), 7, 32, 3, 4).blocks) == 3
