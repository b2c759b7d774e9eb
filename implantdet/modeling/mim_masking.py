"""Which patches masked image modelling hides. Masks are index tensors, so that tokens are gathered, never multiplied.

Letters: N images, H × W grid of patches, L = H·W of them, V visible and M masked ones, D channels of a token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MAX_MASK_RATIO = 0.95


class PatchMask(NamedTuple):
    """Row-major patch indices of every image; together they are all patches, each once.

    Attributes:
        visible: (N, V), int64; V >= 1.
        masked: (N, M), int64.
    """

    visible: Tensor
    masked: Tensor

    @property
    def predicted(self) -> Tensor:
        """The patches that the loss sees: the masked ones; all patches, if none is masked (a plain autoencoder)."""
        return self.masked if self.masked.shape[1] else self.visible


def sample_mask(
    batch_size: int,
    grid: tuple[int, int],
    ratio: float,
    block: int = 1,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> PatchMask:
    """Draw a mask for every image.

    The same number of patches is hidden in all images: as many as MAE hides (arXiv:2111.06377), and at least one patch
    stays visible. With ``block > 1`` squares of patches are hidden; the grid of squares is shifted at random, and at
    most one square of an image is hidden in part, to meet the number.

    Args:
        batch_size: N.
        grid: (H, W).
        ratio: share of hidden patches, in [0, 0.95].
        block: side of the hidden squares, in patches, >= 1; 1: patches at random.
        device: where the indices are wanted. They are drawn on the CPU: a seed gives the same masks on every device.
        generator: on the CPU; None: torch's default one.
    """
    height, width = grid
    squares = (batch_size, -(-height // block) + 1, -(-width // block) + 1)
    noise = torch.rand(squares, generator=generator)
    if block > 1:
        top, left = torch.randint(block, (2,), generator=generator).tolist()
        noise = noise.repeat_interleave(block, dim=1).repeat_interleave(block, dim=2)
        # Shuffles the patches of a square among themselves: neighbouring values of the noise are 2^-24 apart.
        noise = noise.double() + 2.0**-26 * torch.rand(noise.shape, generator=generator)
        noise = noise[:, top : top + height, left : left + width]
    else:
        noise = noise[:, :height, :width]
    order = noise.flatten(1).argsort(dim=1).to(device)
    num_visible = max(1, int(height * width * (1 - ratio)))
    return PatchMask(order[:, :num_visible], order[:, num_visible:])


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Pick tokens by index.

    Args:
        tokens: (N, L, D), or (1, L, D) for the same tokens in every image.
        indices: (N, K).

    Returns:
        (N, K, D).
    """
    num_images, _ = indices.shape
    tokens = tokens.expand(num_images, -1, -1)
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
