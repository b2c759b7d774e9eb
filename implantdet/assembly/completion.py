"""Missing thirds, predicted from the whole implant, or from those that are there.

A third is predicted in the frame of its implant: the origin at the nearest third that is there, the unit the mean
length of those that are, the axis from coronal to apical. A ridge regression gives position and length; the width
follows a spline through the known widths, which the regression corrects (paper section 3.1: predictive models and
spline interpolation). From the box of a whole implant, thirds are predicted in its own frame: its centre, a third of
its length, its width; ``build`` says where. A regression learns from known boxes, jittered as detections are, what the
annotated box of the missing third is, and how far off it is (standard deviations of the edges).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.interpolate import make_interp_spline
from scipy.optimize import nnls
from sklearn.linear_model import Ridge

from implantdet.assembly.geometry import Array, centres, enclosing_size, oriented_size, sizes
from implantdet.assembly.likelihood import PATTERNS, Pattern, directions, link_features

WHOLE_ALONE: Pattern = (3,)  # stands for the whole implant where a pattern names thirds
# What is there, and what is missing.
COMPLETIONS: tuple[tuple[Pattern, int], ...] = tuple(
    (pattern, missing) for pattern in (*PATTERNS[:-1], WHOLE_ALONE) for missing in range(3) if missing not in pattern
)
ALPHA = 1.0  # ridge penalty on features of the order of 0.1 … 1
EXAMPLES = 10  # fewer known implants than this teach no regression


@dataclass(frozen=True)
class ThirdRegression:
    """Linear prediction of a missing third: along, across, log length, log width correction.

    Attributes:
        coefficients: [4, D].
        intercept: [4].
        std: [2] of the edges of the box that run across the axis and along it, in units.
    """

    coefficients: Array
    intercept: Array
    std: Array

    @classmethod
    def fit(cls, frame: Frame, boxes: Array, aspect: float) -> ThirdRegression:
        """From K frames, the [K, 4] boxes of the missing third in them and its usual width / length."""
        targets, usable = frame.describe(boxes, aspect), np.isfinite(frame.features).all(axis=1)
        ridge = Ridge(ALPHA).fit(frame.features[usable], targets[usable])
        error = (frame.place(ridge.predict(np.nan_to_num(frame.features))) - boxes) / frame.unit[:, None]
        # Position and length err together, so the edges' variances are measured and not summed from theirs. An edge
        # of a tilted box has its share of both: least squares tell them apart.
        share = frame.direction[usable] ** 2
        variance, _ = nnls(
            np.stack([share.ravel(), 1 - share.ravel()], axis=1),
            (error[usable, :2] ** 2 + error[usable, 2:] ** 2).ravel() / 2,
        )
        return cls(ridge.coef_, ridge.intercept_, np.sqrt(variance))


@dataclass(frozen=True)
class Frame:
    """Frames of K implants in which the third ``missing`` is described."""

    origin: Array
    unit: Array
    direction: Array
    width: Array
    features: Array

    @classmethod
    def of(cls, boxes: Array, pattern: Pattern, missing: int, direction: Array, aspects: Array) -> Frame:
        """From [K, n, 4] boxes of ``pattern`` and [K, 2] directions."""
        if pattern == WHOLE_ALONE:
            length, width = oriented_size(sizes(boxes[:, 0]), direction, aspects.mean() / len(aspects))
            return cls(centres(boxes[:, 0]), length / len(aspects), direction, width, np.log(width / length)[:, None])
        length, width = oriented_size(sizes(boxes), direction[:, None], aspects[list(pattern)])
        nearest = int(np.argmin([abs(third - missing) for third in pattern]))
        features = link_features(boxes, np.array(pattern), aspects) if len(pattern) > 1 else np.log(width / length)
        width = np.exp(np.log(width) @ _spline(pattern, missing))
        return cls(centres(boxes[:, nearest]), length.mean(axis=1), direction, width, features)

    def describe(self, boxes: Array, aspect: float) -> Array:
        """[K, 4] targets of the regression from [K, 4] boxes of the missing third."""
        offset = (centres(boxes) - self.origin) / self.unit[:, None]
        length, width = oriented_size(sizes(boxes), self.direction, aspect)
        x, y = self.direction.T
        along, across = offset[:, 0] * x + offset[:, 1] * y, offset[:, 1] * x - offset[:, 0] * y
        return np.stack([along, across, np.log(length / self.unit), np.log(width / self.width)], axis=1)

    def place(self, targets: Array) -> Array:
        """[K, 4] boxes; undoes ``describe``."""
        normal = np.stack([-self.direction[:, 1], self.direction[:, 0]], axis=1)
        centre = self.origin + (targets[:, :1] * self.direction + targets[:, 1:2] * normal) * self.unit[:, None]
        length, width = np.exp(targets[:, 2]) * self.unit, np.exp(targets[:, 3]) * self.width
        half = enclosing_size(length, width, self.direction) / 2
        return np.hstack([centre - half, centre + half])

    def spread(self, std: Array) -> Array:
        """[K, 4] standard deviations of the boxes' coordinates, in pixels."""
        share = self.direction**2
        edges = np.sqrt(share * std[0] ** 2 + (1 - share) * std[1] ** 2) * self.unit[:, None]
        return np.hstack([edges, edges])


@cache
def _spline(pattern: Pattern, missing: int) -> Array:
    """[n] weights of known values in the spline through them, at the place of a missing third."""
    # Thirds lie one length apart, so their numbers serve as positions along the axis.
    return make_interp_spline(pattern, np.eye(len(pattern)), k=len(pattern) - 1)(missing)


def fit_regressions(
    triples: Array, targets: Array, wholes: Array, aspects: Array, tilt_std: float, rng: np.random.Generator
) -> dict[tuple[Pattern, int], ThirdRegression]:
    """One regression for every pattern of known thirds, or the whole implant, and every missing third.

    Args:
        triples: [K, 3, 4] boxes of the thirds of complete implants, as a detector finds them.
        targets: [K, 3, 4] as they are.
        wholes: [K, 4] and of the implants.
        aspects: [3] usual width / length.
        tilt_std: radians by which implants stray from the direction that others show.
        rng: for directions that stray.
    """
    own = directions(triples)
    angles = np.arctan2(own[:, 1], own[:, 0]) + rng.normal(0, tilt_std, len(own))
    shown = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    regressions: dict[tuple[Pattern, int], ThirdRegression] = {}
    for pattern, missing in COMPLETIONS:
        known = wholes[:, None] if pattern == WHOLE_ALONE else triples[:, pattern]
        # Two thirds show where the implant points; one, or the box of the whole, learns it from the others.
        u = directions(known) if len(pattern) > 1 else shown
        frame = Frame.of(known, pattern, missing, u, aspects)
        regressions[pattern, missing] = ThirdRegression.fit(frame, targets[:, missing], aspects[missing])
    return regressions


def complete(
    boxes: Array,
    pattern: Pattern,
    axes: Array,
    aspects: Array,
    regressions: Mapping[tuple[Pattern, int], ThirdRegression],
) -> dict[int, tuple[Array, Array]]:
    """Missing third → the boxes [K, 4] of K implants and the standard deviations of their coordinates [K, 4].

    Args:
        boxes: [K, n, 4] of the thirds that are there, or [K, 1, 4] of the whole implants.
        pattern: which ones they are, or ``WHOLE_ALONE``.
        axes: [K, 2] from coronal to apical.
        aspects: [3] usual width / length.
        regressions: from ``fit_regressions``.
    """
    found = {}
    for missing in sorted({0, 1, 2} - set(pattern)):
        frame = Frame.of(boxes, pattern, missing, axes, aspects)
        model = regressions[pattern, missing]
        targets = np.nan_to_num(frame.features) @ model.coefficients.T + model.intercept
        found[missing] = frame.place(targets), frame.spread(model.std)
    return found
