"""Any plain ViT of timm as a Detectron2 backbone with one feature map.

Letters: N images, C channels of the image, D channels of a token, P prefix tokens (class and register tokens),
H × W grid of patches, K patch tokens (all H·W of them, or only the visible ones in masked image modelling).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, islice
from typing import Any

import timm
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer, is_model, is_model_in_modules
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from implantdet.modeling.windows import merge_windows, partition_windows

# The simple feature pyramid needs a stride of 16 for p2 … p6. A model that was trained with other patches is built with
# this size, and its patch embedding is resampled when weights are loaded.
PATCH_SIZE = 16
OUT_FEATURE = "last_feat"


class ViT(Backbone):
    """The encoder of a plain ViT: what timm's ``forward_features`` computes, for images of any size.

    Parameters have the names that timm gives them. The final norm is part of the encoder, and so is the class token if
    the model has one (it is left out of the feature map): pre-training and detection run the same layers, and no key
    is missing from either checkpoint.

    With windows, the patch tokens are partitioned around runs of consecutive blocks (see ``windows.py``); every window
    has its own copy of the prefix tokens, and their mean goes on to the next global block. Drop path then drops a block
    for a window, not for an image.

    Args:
        name: a plain ViT of timm, such as ``vit_base_patch16_224``. It is built with patches of 16 × 16 pixels.
        img_size: side of the square, in pixels, whose patch grid the positions are stored for.
        in_chans: channels of the images.
        drop_path_rate: stochastic depth at the last block; it grows linearly from 0 at the first.
        window_size: longest side of attention windows, in patches; 0: every block sees the whole image.
        global_blocks: indices of the blocks that see the whole image although windows are on.
        checkpointing: recompute the blocks' activations in the backward pass.

    Raises:
        ValueError: ``name`` is not a plain ViT of timm, ``img_size`` is not a multiple of 16, ``window_size`` is
            negative, or a block index is not in the model.
    """

    @configurable
    def __init__(
        self,
        *,
        name: str,
        img_size: int,
        in_chans: int,
        drop_path_rate: float = 0.0,
        window_size: int = 0,
        global_blocks: Sequence[int] = (),
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if window_size < 0:
            raise ValueError(f"MODEL.VIT.WINDOW_SIZE: found {window_size}, expected a side in patches, or 0 for none")
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"MODEL.VIT.DROP_PATH_RATE: found {drop_path_rate}, expected a number in [0, 1)")
        vit = _create_timm_vit(name, img_size, in_chans, drop_path_rate)
        unknown = set(global_blocks) - set(range(len(vit.blocks)))
        if unknown:
            raise ValueError(
                f"MODEL.VIT.GLOBAL_BLOCKS: found {sorted(unknown)}, expected indices of the blocks of {name!r}, "
                f"0 to {len(vit.blocks) - 1}"
            )
        # timm's layers are adopted one by one, without pooling and classifier: keys are `backbone.net.blocks.…`.
        self.patch_embed = vit.patch_embed
        self.cls_token = vit.cls_token
        self.reg_token = vit.reg_token
        self.pos_embed = vit.pos_embed
        self.norm_pre = vit.norm_pre
        self.blocks = vit.blocks
        self.norm = vit.norm
        self.embed_dim = vit.embed_dim
        self.num_prefix_tokens = vit.num_prefix_tokens
        # Some models store no positions for their prefix tokens.
        self.num_prefix_positions = 0 if vit.no_embed_class else vit.num_prefix_tokens
        self.window_size = window_size
        self.checkpointing = checkpointing
        is_windowed = [window_size > 0 and index not in global_blocks for index in range(len(vit.blocks))]
        self._block_runs = [(windowed, len(list(run))) for windowed, run in groupby(is_windowed)]

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Arguments from ``MODEL.VIT`` and the channels of the image."""
        return {
            "name": cfg.MODEL.VIT.NAME,
            "img_size": cfg.MODEL.VIT.IMG_SIZE,
            "in_chans": input_shape.channels,
            "drop_path_rate": cfg.MODEL.VIT.DROP_PATH_RATE,
            "window_size": cfg.MODEL.VIT.WINDOW_SIZE,
            "global_blocks": cfg.MODEL.VIT.GLOBAL_BLOCKS,
            "checkpointing": cfg.MODEL.VIT.CHECKPOINTING,
        }

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of the one feature map, ``last_feat``."""
        return {OUT_FEATURE: ShapeSpec(channels=self.embed_dim, stride=PATCH_SIZE)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Encode whole images.

        Args:
            images: (N, C, 16·H, 16·W), normalised.

        Returns:
            ``{"last_feat": (N, D, H, W)}``, in channels-last memory format.
        """
        tokens, grid = self.embed_patches(images)
        patches = self.encode(tokens, grid)[:, self.num_prefix_tokens :]
        return {OUT_FEATURE: patches.unflatten(1, grid).permute(0, 3, 1, 2)}

    def embed_patches(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed the patches and add their positions, which are interpolated if the grid is not the stored one.

        Args:
            images: (N, C, 16·H, 16·W), normalised.

        Returns:
            Tokens (N, H·W, D) in row-major order, and the grid (H, W).

        Raises:
            ValueError: a side of the images is not a multiple of 16.
        """
        height, width = images.shape[-2:]
        if height % PATCH_SIZE or width % PATCH_SIZE:
            raise ValueError(
                f"found images of {height} × {width} pixels, expected multiples of {PATCH_SIZE}; "
                "resize them (UnlabelledMapper makes squares of MODEL.VIT.IMG_SIZE), or pad them with Detectron2's "
                "ImageList and the backbone's padding_constraints"
            )
        patches = self.patch_embed(images)
        grid = (patches.shape[1], patches.shape[2])
        return patches.flatten(1, 2) + self.positions(grid), grid

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Positions of the patches of a grid (H, W), interpolated if it is not the stored one: (1, H·W, D)."""
        if self.pos_embed is None:
            return self.patch_embed.proj.weight.new_zeros(1, grid[0] * grid[1], self.embed_dim)
        positions = resample_abs_pos_embed(
            self.pos_embed,
            new_size=list(grid),
            old_size=list(self.patch_embed.grid_size),
            num_prefix_tokens=self.num_prefix_positions,
        )
        return positions[:, self.num_prefix_positions :]

    def encode(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Prepend the prefix tokens, then run all blocks and the final norm.

        Args:
            tokens: (N, K, D), from ``embed_patches``; any subset of its tokens, if ``grid`` is None.
            grid: (H, W) of the patches, for the windows. None: every block sees all tokens.

        Returns:
            (N, P + K, D).
        """
        tokens = self._with_prefix(tokens)
        remaining = iter(self.blocks)
        for windowed, num_blocks in self._block_runs:
            blocks = list(islice(remaining, num_blocks))
            if windowed and grid is not None:
                groups = partition_windows(tokens, grid, self.window_size, self.num_prefix_tokens)
                groups = [self._run(blocks, group) for group in groups]
                tokens = merge_windows(groups, grid, self.window_size, self.num_prefix_tokens)
            else:
                tokens = self._run(blocks, tokens)
        return self.norm(tokens)

    def encode_layers(self, tokens: Tensor) -> list[Tensor]:
        """The outputs of all blocks, (N, P + K, D) each, without the final norm; every block sees all tokens.

        Args:
            tokens: (N, K, D), from ``embed_patches``.
        """
        outputs = [self._with_prefix(tokens)]
        for block in self.blocks:
            outputs.append(block(outputs[-1]))
        return outputs[1:]

    def _with_prefix(self, tokens: Tensor) -> Tensor:
        if self.num_prefix_tokens:
            first = torch.cat([token for token in (self.cls_token, self.reg_token) if token is not None], dim=1)
            if self.pos_embed is not None and self.num_prefix_positions:
                first = first + self.pos_embed[:, : self.num_prefix_positions]
            tokens = torch.cat([first.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return self.norm_pre(tokens)

    def _run(self, blocks: Iterable[nn.Module], tokens: Tensor) -> Tensor:
        for block in blocks:
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return tokens


def _create_timm_vit(name: str, img_size: int, in_chans: int, drop_path_rate: float) -> VisionTransformer:
    if img_size % PATCH_SIZE or img_size <= 0:
        raise ValueError(f"MODEL.VIT.IMG_SIZE: found {img_size}, expected a positive multiple of {PATCH_SIZE}")
    # Other architectures would reject the arguments below with an error of their own.
    if is_model(name) and is_model_in_modules(name, ["vision_transformer", "deit"]):
        vit = timm.create_model(
            name,
            img_size=img_size,
            patch_size=PATCH_SIZE,
            in_chans=in_chans,
            num_classes=0,
            drop_path_rate=drop_path_rate,
            dynamic_img_size=True,
        )
        if type(vit) is VisionTransformer:
            return vit
    raise ValueError(
        f"MODEL.VIT.NAME: found {name!r}, expected a plain ViT of timm {timm.__version__}, "
        "such as vit_tiny_patch16_224 or vit_base_patch16_224; timm.list_models('vit_*') lists them"
    )
