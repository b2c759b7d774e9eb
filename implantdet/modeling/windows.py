"""Partition a token sequence into attention windows, and put it together again.

Letters: N images, P prefix tokens (class and register tokens), H × W grid of patch tokens, C channels,
h × w window of patch tokens.

No window is padded. A side of L tokens is cut into ceil(L / size) windows whose lengths differ by at most one, so that
there are at most two lengths per side and at most four window shapes. Each shape makes one batch for the blocks; thus
nothing but real tokens is ever attended to, and no attention mask is needed, which keeps the fastest kernels in use.
"""

from __future__ import annotations

import torch
from torch import Tensor


def window_spans(length: int, size: int) -> list[tuple[int, int]]:
    """Cut ``length`` tokens into ceil(length / size) windows of nearly equal length, longer ones first.

    Returns:
        ``(number of windows, their length)``, one or two entries, with lengths that differ by one.
    """
    num_windows = -(-length // size)
    short, num_long = divmod(length, num_windows)
    spans = [(num_long, short + 1), (num_windows - num_long, short)]
    return [span for span in spans if span[0]]


def partition_windows(tokens: Tensor, grid: tuple[int, int], size: int, num_prefix_tokens: int) -> list[Tensor]:
    """Cut the patch tokens into windows; every window gets its own copy of the prefix tokens.

    Args:
        tokens: (N, P + H·W, C), patches in row-major order.
        grid: (H, W).
        size: longest side of a window, in tokens.
        num_prefix_tokens: P.

    Returns:
        One tensor (N · windows, P + h·w, C) per window shape; the windows of an image lie together, row by row.
    """
    prefix, patches = tokens[:, :num_prefix_tokens], tokens[:, num_prefix_tokens:].unflatten(1, grid)
    rows, cols = window_spans(grid[0], size), window_spans(grid[1], size)
    groups = []
    for (num_rows, h), band in zip(rows, patches.split([n * h for n, h in rows], dim=1), strict=True):
        for (num_cols, w), region in zip(cols, band.split([n * w for n, w in cols], dim=2), strict=True):
            windows = region.unflatten(2, (num_cols, w)).unflatten(1, (num_rows, h)).transpose(2, 3)
            windows = windows.reshape(-1, h * w, tokens.shape[-1])
            copies = prefix.repeat_interleave(num_rows * num_cols, dim=0)
            groups.append(torch.cat([copies, windows], dim=1))
    return groups


def merge_windows(groups: list[Tensor], grid: tuple[int, int], size: int, num_prefix_tokens: int) -> Tensor:
    """The inverse of ``partition_windows``; a prefix token becomes the mean of its copies, one per window.

    Args:
        groups: as returned by ``partition_windows``, possibly after blocks ran on them.
        grid: (H, W).
        size: longest side of a window, in tokens.
        num_prefix_tokens: P.

    Returns:
        (N, P + H·W, C).
    """
    rows, cols = window_spans(grid[0], size), window_spans(grid[1], size)
    num_windows = sum(n for n, _ in rows) * sum(n for n, _ in cols)
    batch_size = sum(group.shape[0] for group in groups) // num_windows
    bands, prefix_sums = [], []
    remaining = iter(groups)
    for num_rows, h in rows:
        regions = []
        for num_cols, w in cols:
            windows = next(remaining).unflatten(0, (batch_size, num_rows, num_cols))
            prefix_sums.append(windows[..., :num_prefix_tokens, :].sum(dim=(1, 2)))
            region = windows[..., num_prefix_tokens:, :].unflatten(3, (h, w)).transpose(2, 3)
            regions.append(region.flatten(3, 4).flatten(1, 2))
        bands.append(torch.cat(regions, dim=2))
    prefix = torch.stack(prefix_sums).sum(dim=0) / num_windows
    return torch.cat([prefix, torch.cat(bands, dim=1).flatten(1, 2)], dim=1)
