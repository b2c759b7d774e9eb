import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from implantdet.modeling.windows import merge_windows, partition_windows, window_spans


@pytest.mark.parametrize(
    ("length", "size", "expected"),
    [
        (14, 14, [(1, 14)]),
        (28, 14, [(2, 14)]),
        (26, 14, [(2, 13)]),
        (16, 14, [(2, 8)]),  # not a window of 14 and a sliver of 2
        (31, 14, [(1, 11), (2, 10)]),
        (3, 14, [(1, 3)]),
        (5, 1, [(5, 1)]),
    ],
)
def test_spans_by_hand(length, size, expected):
    assert window_spans(length, size) == expected


@given(st.integers(1, 200), st.integers(1, 40))
def test_spans_cover_the_side_with_the_fewest_windows(length, size):
    spans = window_spans(length, size)
    lengths = [length for count, length in spans for _ in range(count)]
    assert sum(lengths) == length
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    assert (len(lengths) - 1) * size < length


@settings(deadline=None)
@given(
    batch_size=st.integers(1, 3),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.integers(1, 5),
    num_prefix_tokens=st.integers(0, 2),
)
def test_merging_restores_the_tokens(batch_size, grid, size, num_prefix_tokens):
    tokens = torch.rand(batch_size, num_prefix_tokens + grid[0] * grid[1], 2, dtype=torch.float64)
    groups = partition_windows(tokens, grid, size, num_prefix_tokens)
    assert len(groups) <= 4
    # No padding: the windows of an image hold its patch tokens and nothing else.
    num_patches = sum(group.shape[0] * (group.shape[1] - num_prefix_tokens) for group in groups)
    assert num_patches == batch_size * grid[0] * grid[1]
    torch.testing.assert_close(merge_windows(groups, grid, size, num_prefix_tokens), tokens)


def test_partition_by_hand():
    # One image of 3 × 4 patches, numbered from 1, after a class token of value -1; windows of at most 2 × 2.
    tokens = torch.tensor([[-1, *range(1, 13)]]).unsqueeze(-1)
    high, low = partition_windows(tokens, (3, 4), 2, 1)
    assert high.squeeze(-1).tolist() == [[-1, 1, 2, 5, 6], [-1, 3, 4, 7, 8]]
    assert low.squeeze(-1).tolist() == [[-1, 9, 10], [-1, 11, 12]]


def test_the_windows_of_an_image_lie_together():
    tokens = torch.tensor([0, 1]).reshape(2, 1, 1).expand(2, 12, 1)  # two images, every token says which
    for group in partition_windows(tokens, (3, 4), 2, 0):
        assert group[:, 0, 0].tolist() == [0, 0, 1, 1]


def test_a_prefix_token_becomes_the_mean_of_its_copies():
    tokens = torch.zeros(1, 1 + 12, 1)
    high, low = partition_windows(tokens, (3, 4), 2, 1)
    high[:, 0], low[:, 0] = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [6.0]])
    merged = merge_windows([high, low], (3, 4), 2, 1)
    assert merged[0, 0, 0] == 3.0  # every window counts the same, whatever its shape
    assert not merged[0, 1:].any()


def test_gradients_pass_through():
    tokens = torch.rand(2, 1 + 5 * 7, 3, dtype=torch.float64, requires_grad=True)

    def roundtrip(tokens):
        return merge_windows(partition_windows(tokens, (5, 7), 3, 1), (5, 7), 3, 1)

    assert torch.autograd.gradcheck(roundtrip, (tokens,))
