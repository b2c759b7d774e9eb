"""Masks: complete, of the right number, in squares if asked for, and decided by the seed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from implantdet.modeling.mim_masking import gather_tokens, sample_mask


def as_image(mask, grid):
    """1 where a patch is hidden: (N, H, W)."""
    flat = torch.zeros(len(mask.visible), grid[0] * grid[1], dtype=torch.long)
    return flat.scatter_(1, mask.masked, 1).unflatten(1, grid)


@settings(max_examples=50, deadline=None)
@given(grid=st.tuples(st.integers(1, 9), st.integers(1, 9)), ratio=st.floats(0, 0.95), block=st.integers(1, 4))
def test_every_patch_stands_in_one_part_and_the_number_is_right(grid, ratio, block):
    mask = sample_mask(3, grid, ratio, block)
    num_patches = grid[0] * grid[1]
    assert mask.visible.shape[1] == max(1, int(num_patches * (1 - ratio)))
    everything = torch.cat([mask.visible, mask.masked], dim=1).sort(dim=1).values
    assert torch.equal(everything, torch.arange(num_patches).expand(3, -1))
    assert torch.equal(mask.predicted, mask.masked if mask.masked.shape[1] else mask.visible)


def test_images_have_masks_of_their_own_and_the_seed_decides():
    masks = []
    for _ in range(2):
        torch.manual_seed(3)
        masks.append(sample_mask(2, (6, 6), 0.5))
    assert torch.equal(masks[0].masked, masks[1].masked)
    assert not torch.equal(masks[0].masked[0].sort().values, masks[0].masked[1].sort().values)
    other = sample_mask(2, (6, 6), 0.5, generator=torch.Generator().manual_seed(4))
    assert not torch.equal(masks[0].masked, other.masked)


@pytest.mark.parametrize("block", [1, 3])
def test_every_patch_is_hidden_equally_often(block):
    hidden = as_image(sample_mask(4000, (6, 6), 0.5, block, generator=torch.Generator().manual_seed(0)), (6, 6))
    # One shift of the squares holds for a batch, so with squares the mean is over several batches.
    for seed in range(1, 20):
        hidden = hidden + as_image(
            sample_mask(4000, (6, 6), 0.5, block, generator=torch.Generator().manual_seed(seed)), (6, 6)
        )
    assert torch.allclose(hidden.float().mean(dim=0) / 20, torch.full((6, 6), 0.5), atol=0.05)


def test_squares_are_hidden_whole():
    """On any mask there is one shift at which at most one square is hidden in part."""
    for seed in range(10):
        image = as_image(sample_mask(1, (12, 12), 0.6, 3, generator=torch.Generator().manual_seed(seed)), (12, 12))[0]
        num_partial = []
        for top in range(3):
            for left in range(3):
                squares = [
                    image[max(0, row) : row + 3, max(0, col) : col + 3]
                    for row in range(top - 3, 12, 3)
                    for col in range(left - 3, 12, 3)
                ]
                num_partial.append(sum(0 < int(square.sum()) < square.numel() for square in squares if square.numel()))
        assert min(num_partial) <= 1 < max(num_partial)


def test_squares_stand_now_here_now_there():
    """Else the same patches would always be hidden together."""
    shifts = set()
    for seed in range(30):
        image = as_image(sample_mask(1, (12, 12), 0.6, 3, generator=torch.Generator().manual_seed(seed)), (12, 12))[0]
        for top in range(3):
            for left in range(3):
                squares = [image[r : r + 3, c : c + 3] for r in range(top, 10, 3) for c in range(left, 10, 3)]
                if sum(0 < int(square.sum()) < 9 for square in squares) <= 1:
                    shifts.add((top, left))
    assert len({top for top, _ in shifts}) > 1 and len({left for _, left in shifts}) > 1


def test_gather_tokens():
    tokens = torch.arange(24.0).reshape(2, 4, 3)
    indices = torch.tensor([[3, 0], [1, 1]])
    expected = torch.stack([tokens[0, [3, 0]], tokens[1, [1, 1]]])
    assert torch.equal(gather_tokens(tokens, indices), expected)
    assert torch.equal(gather_tokens(tokens[:1], indices)[1], tokens[0, [1, 1]])
