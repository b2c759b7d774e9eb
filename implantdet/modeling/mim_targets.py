"""What masked image modelling predicts for a patch: its pixels, its embedding, or deep features of it.

No gradient ever flows through a target. Letters: N images, C channels, H × W grid of patches, L = H·W of them,
p side of a patch in pixels, D channels of a token, T channels of a target.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from implantdet.modeling.vit import PATCH_SIZE, ViT


def patchify(images: Tensor) -> Tensor:
    """Cut images (N, C, p·H, p·W) into patches (N, L, p·p·C), pixels row by row with their channels together."""
    height, width = images.shape[-2] // PATCH_SIZE, images.shape[-1] // PATCH_SIZE
    patches = images.unflatten(3, (width, PATCH_SIZE)).unflatten(2, (height, PATCH_SIZE))
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse of ``patchify``."""
    pixels = patches.unflatten(2, (PATCH_SIZE, PATCH_SIZE, -1)).unflatten(1, grid)
    return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def standardize(targets: Tensor) -> Tensor:
    """Give every patch's target mean 0 and variance 1 over its channels, as MAE does with pixels."""
    targets = targets.float()
    variance, mean = torch.var_mean(targets, dim=-1, keepdim=True)
    return (targets - mean) / (variance + 1e-6).sqrt()


class PixelTarget(nn.Module):
    """The pixels of the patch (MAE, arXiv:2111.06377); T = p·p·C.

    Args:
        in_chans: channels of the images.
    """

    def __init__(self, in_chans: int) -> None:
        super().__init__()
        self.dim = in_chans * PATCH_SIZE**2

    def forward(self, images: Tensor, encoder: ViT) -> Tensor:
        """Targets of all patches, (N, L, T)."""
        return patchify(images)

    def update(self, encoder: ViT, step: int) -> None:
        """Nothing is learned."""


class PatchEmbedTarget(nn.Module):
    """The encoder's own patch embeddings, without positions, as they are at this step (MDE as the paper reads); T = D.

    Args:
        embed_dim: D.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.dim = embed_dim

    @torch.no_grad()
    def forward(self, images: Tensor, encoder: ViT) -> Tensor:
        """Targets of all patches, (N, L, T)."""
        return encoder.patch_embed(images).flatten(1, 2)

    def update(self, encoder: ViT, step: int) -> None:
        """The encoder is read at every step."""


class EncoderTarget(nn.Module):
    """Deep features of the whole image, by a moving average of the encoder (data2vec, arXiv:2202.03555); T = D.

    The outputs of the chosen blocks are standardised per patch and averaged.

    Args:
        encoder: the teacher starts as a copy of it, up to the highest chosen block.
        layers: indices of the chosen blocks; empty: all of them.
        decay: decay of the average per step, in [0, 1); 0: the teacher is the encoder as it was after the last step.
    """

    def __init__(self, encoder: ViT, layers: Sequence[int], decay: float) -> None:
        super().__init__()
        every = range(len(encoder.blocks))
        layers = tuple(layers) or tuple(every)
        if set(layers) - set(every):
            raise ValueError(
                f"MODEL.MIM.TARGET_LAYERS: found {list(layers)}, expected indices of the encoder's blocks, "
                f"0 to {len(encoder.blocks) - 1}"
            )
        if not 0 <= decay < 1:
            raise ValueError(f"MODEL.MIM.EMA_DECAY: found {decay}, expected a number in [0, 1)")
        self.dim = encoder.embed_dim
        self.layers = layers
        self.decay = decay
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.teacher.blocks = self.teacher.blocks[: max(layers) + 1]  # no work above the highest block that is read
        self.train(False)

    def train(self, mode: bool = True) -> EncoderTarget:
        """The teacher never trains: no drop path."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor, encoder: ViT) -> Tensor:
        """Targets of all patches, (N, L, T)."""
        outputs = self.teacher.encode_layers(self.teacher.embed_patches(images)[0])
        chosen = [outputs[layer][:, encoder.num_prefix_tokens :] for layer in self.layers]
        return torch.stack([F.layer_norm(x.float(), x.shape[-1:]) for x in chosen]).mean(dim=0)

    @torch.no_grad()
    def update(self, encoder: ViT, step: int) -> None:
        """Take in the encoder's weights, once after every step of the optimizer.

        Args:
            encoder: the ViT that is trained.
            step: number of steps so far; 0 copies the weights.
        """
        average = get_ema_multi_avg_fn(self.decay if step else 0.0)
        followed = dict(encoder.named_parameters())
        names, averages = zip(*self.teacher.named_parameters(), strict=True)
        average(list(averages), [followed[name] for name in names], step)


def build_target(
    name: str, encoder: ViT, in_chans: int, layers: Sequence[int], ema_decay: float
) -> PixelTarget | PatchEmbedTarget | EncoderTarget:
    """Build the target of ``MODEL.MIM.TARGET``.

    Args:
        name: ``pixel``, ``patch_embed`` or ``encoder``.
        encoder: the ViT that is trained.
        in_chans: channels of the images.
        layers: see ``EncoderTarget``.
        ema_decay: see ``EncoderTarget``.

    Raises:
        ValueError: an argument is out of its range.
    """
    if name == "pixel":
        return PixelTarget(in_chans)
    if name == "patch_embed":
        return PatchEmbedTarget(encoder.embed_dim)
    if name == "encoder":
        return EncoderTarget(encoder, layers, ema_decay)
    raise ValueError(f"MODEL.MIM.TARGET: found {name!r}, expected pixel, patch_embed or encoder")
