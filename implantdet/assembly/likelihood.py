"""How well a set of thirds fits together: negative log-likelihoods learned from known implants.

Letters: K sets of n thirds each, D features. ``thirds`` says which they are, in order: 0 coronal, 1 middle, 2 apical.
Costs are in nats, 0 at the mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from implantdet.assembly.geometry import (
    Array,
    Indices,
    centres,
    intersection_area,
    oriented_size,
    sizes,
    unit,
)

PATTERNS = ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))  # thirds that an implant can have
PAIRS, TRIPLE = PATTERNS[3:6], PATTERNS[6]
Pattern = tuple[int, ...]

DEGREES_OF_FREEDOM = 10.0  # of the Student-t: a cut or covered third is unusual, not impossible
MIN_STD = 0.03  # of a feature, so that no covariance is singular
TINY = 1e-9


@dataclass(frozen=True)
class StudentT:
    """Multivariate Student-t distributions, as costs; M of them.

    Attributes:
        mean: [M, D].
        precision: [M, D, D] inverse of the scale matrices.
    """

    mean: Array
    precision: Array

    @classmethod
    def fit(cls, samples: Sequence[Array], min_std: float = MIN_STD) -> StudentT:
        """From M arrays of [K, D] samples."""
        spread = [np.atleast_2d(np.cov(s, rowvar=False)) + min_std**2 * np.eye(s.shape[1]) for s in samples]
        return cls(np.array([s.mean(axis=0) for s in samples]), np.linalg.inv(np.array(spread)))

    def cost(self, samples: Array, which: Indices | int) -> Array:
        """[K] negative log-density of [K, D] samples under the distributions ``which``, relative to the mode."""
        offset = samples - self.mean[which]
        distance = (offset[:, None] @ self.precision[which] @ offset[..., None])[:, 0, 0]
        return tail_cost(distance, samples.shape[1])


def tail_cost(squared_distance: Array, dimensions: int) -> Array:
    """Cost of a squared Mahalanobis distance under the Student-t distribution."""
    nu = DEGREES_OF_FREEDOM
    return (nu + dimensions) / 2 * np.log1p(squared_distance / nu)


def directions(boxes: Array) -> Array:
    """[K, 2] from the first to the last of [K, n, 4] boxes, n >= 2."""
    return unit(centres(boxes[:, -1]) - centres(boxes[:, 0]))


def link_features(boxes: Array, thirds: Indices, aspects: Array) -> Array:
    """What is compared with known implants; no unit of length is left in it.

    Args:
        boxes: [K, n, 4], n >= 2.
        thirds: [K, n], or [n] for all alike.
        aspects: [3] usual width / length of every third.

    Returns:
        [K, 3n - 2], of three [K, 8]. For every two neighbours: spacing against lengths, ratio of lengths, ratio of
        widths (logarithms); then the overall aspect and, of three, the offset of the middle from the axis. NaN where
        the order along the axis is wrong.
    """
    points = centres(boxes)
    u = unit(points[:, -1] - points[:, 0])
    length, width = oriented_size(sizes(boxes), u[:, None], aspects[thirds])
    step = points[:, 1:] - points[:, :-1]
    along = (step * u[:, None]).sum(axis=-1)
    # A missing middle is taken to be as long as the mean of its neighbours.
    expected = np.diff(thirds) * (length[:, 1:] + length[:, :-1]) / 2
    with np.errstate(invalid="ignore"):
        spacing = np.log(np.where(along > TINY, along, np.nan) / expected)
    log_length, log_width = np.log(length), np.log(width)
    columns = [spacing, np.diff(log_length), np.diff(log_width), (log_width - log_length).mean(axis=1, keepdims=True)]
    if boxes.shape[1] == len(TRIPLE):
        across = step[:, 0, 0] * u[:, 1] - step[:, 0, 1] * u[:, 0]
        columns.append((across / length.mean(axis=1))[:, None])
    return np.concatenate(columns, axis=1)


def whole_features(thirds: Array, whole: Array) -> Array:
    """[K, 2] logarithms: share of the thirds' box that the whole implant's covers, and share of it that they fill."""
    shared = np.maximum(intersection_area(thirds, whole), TINY)
    return np.log(np.stack([shared / np.prod(sizes(thirds), -1), shared / np.prod(sizes(whole), -1)], axis=-1))


@dataclass(frozen=True)
class ImplantModel:
    """What known implants look like.

    Attributes:
        aspects: [3] usual width / length of every third.
        pairs: features of two thirds, in the order of ``PAIRS``.
        triple: features of three.
        wholes: thirds against the whole implant's box, in the order of ``PATTERNS``.
        tilt_std: radians between an implant and the axis of its image.
    """

    aspects: Array
    pairs: StudentT
    triple: StudentT
    wholes: StudentT
    tilt_std: float

    def link_cost(self, boxes: Array, thirds: Indices) -> Array:
        """[K] cost of [K, n, 4] boxes of [K, n] thirds as one implant; infinite in the wrong order along the axis."""
        features = link_features(boxes, thirds, self.aspects)
        if boxes.shape[1] == len(TRIPLE):
            cost = self.triple.cost(features, 0)
        else:
            cost = self.pairs.cost(features, thirds.sum(axis=1) - 1)  # (0, 1), (0, 2), (1, 2) have the sums 1, 2, 3
        return np.where(np.isnan(cost), np.inf, cost)

    def tilt_cost(self, angle: Array) -> Array:
        """[K] cost of [K] radians to the axis of the image."""
        return tail_cost((angle / self.tilt_std) ** 2, 1)

    def whole_cost(self, thirds: Array, whole: Array, pattern: Indices) -> Array:
        """[K] cost of [K, 4] boxes round thirds in [K, 4] whole implants; ``pattern`` [K] indexes ``PATTERNS``."""
        return self.wholes.cost(whole_features(thirds, whole), pattern)
