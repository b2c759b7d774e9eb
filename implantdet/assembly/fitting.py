"""Learn what implants look like from the boxes of known ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from implantdet.assembly.completion import EXAMPLES, ThirdRegression, fit_regressions
from implantdet.assembly.geometry import Array, angle_to_axis, mean_axis, oriented_size, sizes, union
from implantdet.assembly.known import KnownImplant
from implantdet.assembly.likelihood import (
    PAIRS,
    PATTERNS,
    TRIPLE,
    ImplantModel,
    Pattern,
    StudentT,
    directions,
    link_features,
    whole_features,
)
from implantdet.structures import SLOTS
from implantdet.taxonomy import SYSTEM, THIRDS

COPIES = 4  # jittered copies of every known implant
MIN_WHOLE_STD = 0.1  # of the logarithm of a share: detectors cut whole implants more loosely than thirds
TILT_STD, MIN_TILT_STD = math.radians(10), math.radians(3)


class TooFewImplantsError(ValueError):
    """A dataset shows too few whole implants to learn from; there is no second stage for it."""


def fit_geometry(
    images: Sequence[Sequence[KnownImplant]], box_noise: Array | float, seed: int = 0
) -> tuple[ImplantModel, dict[tuple[Pattern, int], ThirdRegression]]:
    """Likelihoods and regressions from the implants whose three thirds are annotated and not cut by the frame.

    Args:
        images: known implants, image by image.
        box_noise: standard deviation of detected edges in mean sides of the box, by which known boxes are jittered:
            one number, or [5, 2] as of ``calibrating.box_noise``.
        seed: of the jitter.

    Raises:
        TooFewImplantsError: fewer than ``EXAMPLES`` complete implants.
    """
    complete = [[i for i in image if set(THIRDS) <= i.boxes.keys() and not i.cut & set(THIRDS)] for image in images]
    known = [implant for image in complete for implant in image]
    if len(known) < EXAMPLES:
        raise TooFewImplantsError(
            f"the dataset has {len(known)} implants with all three thirds annotated, joined by 'implant_id' and clear "
            f"of the frame; expected at least {EXAMPLES}"
        )
    rng = np.random.default_rng(seed)
    clean = np.array([[implant.boxes[third] for third in THIRDS] for implant in known])
    noise = np.broadcast_to(box_noise, (len(SLOTS) + 1, 2))
    axes = np.tile(directions(clean), (COPIES, 1))
    triples = _jittered(np.tile(clean, (COPIES, 1, 1)), axes, noise[: len(THIRDS)], rng)
    # Where none is annotated, the box round the thirds stands for the whole implant.
    whole = np.array([implant.boxes.get(SYSTEM, implant.box) for implant in known] * COPIES)[:, None]
    wholes, alone = (_jittered(whole, axes, noise[[k]], rng)[:, 0] for k in (-2, -1))
    u = directions(triples)
    length, width = oriented_size(sizes(triples), u[:, None], 1.0)
    aspects = np.median(width / length, axis=0)
    pairs = [_finite(link_features(triples[:, pair], np.array(pair), aspects)) for pair in PAIRS]
    triple = _finite(link_features(triples, np.array(TRIPLE), aspects))
    mirrored = triple * np.r_[np.ones(triple.shape[1] - 1), -1]  # only the sign of the offset from the axis differs
    tilt_std = _tilt_std(complete)
    model = ImplantModel(
        aspects,
        StudentT.fit(pairs),
        StudentT.fit([np.concatenate([triple, mirrored])]),
        _fit_wholes(triples, wholes),
        tilt_std,
    )
    targets = np.tile(clean, (COPIES, 1, 1))
    return model, fit_regressions(triples, targets, alone, aspects, tilt_std, rng)


def _tilt_std(images: Sequence[Sequence[KnownImplant]]) -> float:
    """Radians by which implants stray from the common axis of their image; ``TILT_STD`` without two in an image."""
    angles = []
    for image in images:
        if len(image) > 1:
            u = directions(np.array([[implant.boxes[third] for third in THIRDS] for implant in image]))
            angles.append(angle_to_axis(u, mean_axis(u, np.ones(len(u)))))
    return max(MIN_TILT_STD, float(np.sqrt(np.mean(np.concatenate(angles) ** 2)))) if angles else TILT_STD


def _jittered(boxes: Array, axes: Array, noise: Array, rng: np.random.Generator) -> Array:
    """[K, n, 4] boxes with other edges; ``axes`` [K, 2] are the directions of their implants, ``noise`` is [n, 2]."""
    side = sizes(boxes).mean(axis=(-2, -1), keepdims=True)
    share = axes[:, None] ** 2
    # Of a leaning implant, every edge has its share of both.
    std = np.sqrt(share * noise[:, :1] ** 2 + (1 - share) * noise[:, 1:] ** 2)
    jittered = boxes + np.concatenate([std, std], axis=-1) * side * rng.standard_normal(boxes.shape)
    corners = jittered[..., :2], jittered[..., 2:]
    return np.concatenate([np.minimum(*corners), np.maximum(*corners)], axis=-1)


def _finite(features: Array) -> Array:
    return features[np.isfinite(features).all(axis=1)]


def _fit_wholes(triples: Array, wholes: Array) -> StudentT:
    """Thirds [K, 3, 4] against whole implants [K, 4]."""
    samples = []
    for pattern in PATTERNS:
        thirds = triples[:, pattern]
        box = union(thirds)
        samples.append(whole_features(box, wholes))
    return StudentT.fit(samples, MIN_WHOLE_STD)
