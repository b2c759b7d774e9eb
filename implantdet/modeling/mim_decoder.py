"""From visible patches to predictions for the masked ones: a light transformer, or a linear head alone.

Letters: N images, H × W grid of patches, P prefix tokens, V visible and M predicted patches, D channels of the encoder,
E channels of the decoder, O outputs per patch.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import Attention, LayerNorm, resample_abs_pos_embed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from implantdet.modeling.mim_masking import PatchMask, gather_tokens
from implantdet.modeling.vit import ViT


def sine_cosine_positions(grid: tuple[int, int], dim: int, device: torch.device | None = None) -> Tensor:
    """MAE's fixed positions, (1, H·W, dim): sines and cosines of the column, then of the row; dim divisible by 4."""
    positions = build_sincos2d_pos_embed(list(grid), dim, device=device)
    # timm's order is sines of row and column, then cosines of row and column.
    return positions.unflatten(1, (2, 2, dim // 4)).transpose(1, 2).flip(1).flatten(1).unsqueeze(0)


class LinearHead(nn.Module):
    """No decoder: mask tokens pass through the encoder among the visible patches, and one linear layer predicts.

    The paper's reading (section 3.2, "masked sequence generation"; arXiv:2111.09886 does the same). Behind an encoder
    that sees visible patches only, a linear head would predict from the position alone and train nothing.

    Args:
        embed_dim: D.
        out_dim: O.
    """

    def __init__(self, embed_dim: int, out_dim: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pred = nn.Linear(embed_dim, out_dim)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, encoder: ViT, tokens: Tensor, mask: PatchMask, grid: tuple[int, int]) -> Tensor:
        """Encode and predict.

        Args:
            encoder: the ViT.
            tokens: (N, H·W, D), the embedded patches with their positions; the masked ones are not read.
            mask: which of them are visible.
            grid: (H, W).

        Returns:
            Predictions for ``mask.predicted``, (N, M, O).
        """
        masked = self.mask_token + gather_tokens(encoder.positions(grid), mask.masked)
        latent = encoder.encode(torch.cat([gather_tokens(tokens, mask.visible), masked], dim=1))
        return self.pred(latent[:, -mask.predicted.shape[1] :])


class TransformerDecoder(nn.Module):
    """MAE's decoder (arXiv:2111.06377): the encoder sees visible patches only; a narrower transformer adds mask tokens.

    Args:
        embed_dim: D.
        out_dim: O.
        dim: E, divisible by 4 and by ``num_heads``.
        depth: number of blocks, >= 1.
        num_heads: attention heads.
        num_prefix_tokens: P.
    """

    def __init__(
        self, embed_dim: int, out_dim: int, *, dim: int, depth: int, num_heads: int, num_prefix_tokens: int
    ) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.embed = nn.Linear(embed_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.Sequential(*(Block(dim, num_heads, qkv_bias=True) for _ in range(depth)))
        self.norm = LayerNorm(dim)
        self.pred = nn.Linear(dim, out_dim)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, encoder: ViT, tokens: Tensor, mask: PatchMask, grid: tuple[int, int]) -> Tensor:
        """Encode and predict; see ``LinearHead.forward``."""
        latent = self.embed(encoder.encode(gather_tokens(tokens, mask.visible)))
        prefix, visible = latent.split([self.num_prefix_tokens, mask.visible.shape[1]], dim=1)
        positions = self.positions(encoder, grid)
        visible = visible + gather_tokens(positions, mask.visible)
        masked = self.mask_token + gather_tokens(positions, mask.masked)
        # Attention does not mind the order, so the patches need not go back to their places.
        latent = torch.cat([prefix, visible, masked.to(visible.dtype)], dim=1)
        latent = end_of_block(cast(Block, self.blocks[-1]), self.blocks[:-1](latent), mask.predicted.shape[1])
        return self.pred(self.norm(latent))

    def positions(self, encoder: ViT, grid: tuple[int, int]) -> Tensor:
        """Those of the encoder's stored grid, interpolated as the encoder interpolates its own: (1, H·W, E)."""
        stored = encoder.patch_embed.grid_size
        positions = sine_cosine_positions(stored, self.mask_token.shape[-1], self.mask_token.device)
        return resample_abs_pos_embed(positions, new_size=list(grid), old_size=list(stored), num_prefix_tokens=0)


def end_of_block(block: Block, tokens: Tensor, num_last: int) -> Tensor:
    """What a block returns for the last tokens; the others serve as keys and values only, which saves their MLP.

    Args:
        block: a block without drop path and layer scale.
        tokens: (N, K, E).
        num_last: M, in [1, K].

    Returns:
        (N, M, E).
    """
    attn, dim = cast(Attention, block.attn), tokens.shape[-1]
    weight, bias = attn.qkv.weight, attn.qkv.bias
    normed = block.norm1(tokens)
    query = F.linear(normed[:, -num_last:], weight[:dim], bias[:dim])
    key, value = F.linear(normed, weight[dim:], bias[dim:]).chunk(2, dim=-1)
    heads = [x.unflatten(-1, (attn.num_heads, attn.head_dim)).transpose(1, 2) for x in (query, key, value)]
    mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    tokens = tokens[:, -num_last:] + attn.proj(mixed)
    return tokens + block.mlp(block.norm2(tokens))


def build_decoder(encoder: ViT, out_dim: int, dim: int, depth: int, num_heads: int) -> LinearHead | TransformerDecoder:
    """Build the decoder of ``MODEL.MIM.DECODER_*``; a depth of 0 means the linear head.

    Raises:
        ValueError: the decoder cannot have this shape.
    """
    if depth == 0:
        return LinearHead(encoder.embed_dim, out_dim)
    if depth < 0 or num_heads < 1 or dim <= 0 or dim % 4 or dim % num_heads:
        raise ValueError(
            f"MODEL.MIM: found DECODER_DEPTH {depth}, DECODER_DIM {dim} and DECODER_HEADS {num_heads}; "
            "expected a depth >= 0 and a positive dim that 4 and the number of heads divide"
        )
    prefix = encoder.num_prefix_tokens
    return TransformerDecoder(
        encoder.embed_dim, out_dim, dim=dim, depth=depth, num_heads=num_heads, num_prefix_tokens=prefix
    )
