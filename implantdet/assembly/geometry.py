"""Plane geometry of tilted thirds in axis-aligned boxes.

Letters: N boxes. A third is a rectangle of ``length`` along the implant's axis and ``width`` across it; its box is
axis-aligned, so both have to be solved for. The centre of the box is the centre of the third whatever the tilt.
Directions are unit vectors from the coronal to the apical end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Bools = NDArray[np.bool_]

# Pull of the usual aspect ratio, relative to the box: decides at a tilt of 45°, where every rectangle of the same
# length + width has the same box, and is 1 % otherwise.
ASPECT_PULL = 0.1
MIN_SHARE = 0.05  # of the larger side of the box: no third is thinner


def centres(boxes: Array) -> Array:
    """[N, 2] centres of [N, 4] boxes."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def sizes(boxes: Array) -> Array:
    """[N, 2] width and height of [N, 4] boxes."""
    return boxes[..., 2:] - boxes[..., :2]


def oriented_size(box_size: Array, direction: Array, aspect: Array | float) -> tuple[Array, Array]:
    """Length and width of the tilted rectangles that boxes enclose.

    Least squares of ``W = l|x| + w|y|, H = l|y| + w|x|`` with a small term that pulls ``w`` to ``aspect * l``.

    Args:
        box_size: [..., 2] width and height of the boxes.
        direction: [..., 2] unit vectors.
        aspect: usual width / length.

    Returns:
        [...] length along and [...] width across the direction.
    """
    x, y = np.abs(direction[..., 0]), np.abs(direction[..., 1])
    box_w, box_h = box_size[..., 0], box_size[..., 1]
    along, across = x * box_w + y * box_h, y * box_w + x * box_h
    pull = ASPECT_PULL**2
    ll, lw, ww = 1 + pull * aspect**2, 2 * x * y - pull * aspect, 1 + pull
    determinant = ll * ww - lw**2
    smallest = MIN_SHARE * np.maximum(box_w, box_h)
    length = np.maximum((ww * along - lw * across) / determinant, smallest)
    width = np.maximum((ll * across - lw * along) / determinant, smallest)
    return length, width


def enclosing_size(length: Array, width: Array, direction: Array) -> Array:
    """[..., 2] width and height of the boxes round tilted rectangles; undoes ``oriented_size``."""
    size = np.abs(direction)
    return length[..., None] * size + width[..., None] * size[..., ::-1]


def union(boxes: Array) -> Array:
    """[..., 4] the box round [..., N, 4] boxes."""
    return np.concatenate([boxes[..., :2].min(axis=-2), boxes[..., 2:].max(axis=-2)], axis=-1)


def intersection_area(a: Array, b: Array) -> Array:
    """Area that boxes share; the leading dimensions broadcast."""
    size = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    return np.prod(np.maximum(size, 0), axis=-1)


def iou(a: Array, b: Array) -> Array:
    """Intersection over union of boxes with an area; the leading dimensions broadcast."""
    shared = intersection_area(a, b)
    return shared / (np.prod(sizes(a), axis=-1) + np.prod(sizes(b), axis=-1) - shared)


def unit(vectors: Array) -> Array:
    """[..., 2] vectors at length 1; (0, 1) for a vector of length 0."""
    norm = np.hypot(vectors[..., 0], vectors[..., 1])[..., None]
    with np.errstate(invalid="ignore"):
        return np.where(norm > 0, vectors / norm, (0.0, 1.0))


def mean_axis(directions: Array, weights: Array) -> Array:
    """[2] the axis, without a sense, that [N, 2] directions share: the mean of their doubled angles."""
    angles = np.arctan2(directions[:, 1], directions[:, 0])
    mean = np.arctan2(weights @ np.sin(2 * angles), weights @ np.cos(2 * angles)) / 2
    return np.array([np.cos(mean), np.sin(mean)])


def angle_to_axis(directions: Array, axis: Array) -> Array:
    """Radians in [0, π/2] between [..., 2] directions and an axis without a sense."""
    cross = directions[..., 0] * axis[1] - directions[..., 1] * axis[0]
    return np.abs(np.arctan2(np.abs(cross), np.abs(directions @ axis)))


def reading_order(boxes: Sequence[Sequence[float]]) -> list[int]:
    """Indices of boxes (x0, y0, x1, y1) as one reads: a row has those whose middle is above the end of its highest."""
    rows: list[list[int]] = []
    for k in sorted(range(len(boxes)), key=lambda k: boxes[k][1] + boxes[k][3]):
        if rows and boxes[k][1] + boxes[k][3] < 2 * boxes[rows[-1][0]][3]:
            rows[-1].append(k)
        else:
            rows.append([k])
    return [k for row in rows for k in sorted(row, key=lambda k: boxes[k][0] + boxes[k][2])]
