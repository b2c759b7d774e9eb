"""What validation predictions teach: score thresholds, rates of misses, worth of parts, box weights, implant scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import median_abs_deviation
from sklearn.linear_model import LogisticRegression

from implantdet.assembly.gather import Detections, Meaning
from implantdet.assembly.geometry import Array, iou, union
from implantdet.assembly.known import KnownImplant
from implantdet.assembly.ranking import readings_of
from implantdet.assembly.ranking_calibration import Sample
from implantdet.structures import SLOTS, Assembly, Box, Implant, Part
from implantdet.taxonomy import SYSTEM, THIRDS

MATCH_IOU = 0.5
RATES = (0.01, 0.5)  # no slot is taken to be missed less or more often
MIN_BEST = 1e-3  # best score of an image; with 0 there is no level
EXAMPLES = 10  # fewer than this change no threshold
WEIGHTS = np.linspace(0, 1, 21)
MAX_LOG_ODDS = 7.0  # of a score
TWO_SIDED_95 = 1.96  # standard deviations of a normal distribution
MIN_STRAYING = 0.1  # where a detector misses nothing and errs nowhere, deviations still are some
# Nats that a part has besides the log-odds of being right: right ones stand where an implant has them, by chance hardly
# any does. A whole implant stands in no such relation, but its thirds lie in it.
PLACE = np.array([8.0, 8.0, 8.0, 4.0])


def match(found: Sequence[Box], truth: Sequence[Box], min_iou: float = MATCH_IOU) -> list[tuple[int, int]]:
    """Pairs (found, truth), each at most once, with the largest total overlap among pairs of at least ``min_iou``."""
    if not found or not truth:
        return []
    overlap = iou(np.array(found, float)[:, None], np.array(truth, float)[None])
    overlap = np.where(overlap >= min_iou, overlap, 0)
    return [(int(i), int(j)) for i, j in zip(*linear_sum_assignment(-overlap), strict=True) if overlap[i, j] > 0]


def match_in_order(found: Sequence[Box], truth: Sequence[Box], min_iou: float = MATCH_IOU) -> list[tuple[int, int]]:
    """Pairs (found, truth), each at most once, as COCO makes them: in their order, the best scored first, those found
    take the true one that they overlap most, of those that are left and overlap by at least ``min_iou``.
    """
    if not found or not truth:
        return []
    overlap = iou(np.array(found, float)[:, None], np.array(truth, float)[None])
    pairs = []
    for index, row in enumerate(overlap):
        best = int(row.argmax())
        if row[best] >= min_iou:
            pairs.append((index, best))
            overlap[:, best] = -1
    return pairs


def score_quantiles(
    images: Iterable[tuple[Detections, Sequence[KnownImplant]]],
    classes: Sequence[Meaning | None],
    quantile: float,
    default: float,
) -> tuple[Array, float]:
    """[classes] score that all but ``quantile`` of the found parts of a category reach, and the median best score.

    Args:
        images: detections and known implants of every image.
        classes: meaning of every class.
        quantile: in [0, 1].
        default: for categories with fewer than ``EXAMPLES`` found parts, and for whole implants: a weak one still
            becomes an implant, with a score that says so.
    """
    scores: list[list[float]] = [[] for _ in classes]
    best = []
    for detections, known in images:
        if known and len(detections.scores):
            best.append(max(float(detections.scores.max()), MIN_BEST))
        for index, meaning in enumerate(classes):
            mine = detections.classes == index
            if meaning is None or meaning.slot == SYSTEM or not mine.any():
                continue
            truth = [i.boxes[meaning.slot] for i in known if i.values.get(meaning.axis) == meaning.value]
            if truth:
                overlap = iou(detections.boxes[mine][:, None], np.array(truth)[None])
                hits = np.where(overlap >= MATCH_IOU, detections.scores[mine][:, None], 0).max(axis=0)
                scores[index] += hits[hits > 0].tolist()
    thresholds = [float(np.quantile(s, quantile)) if len(s) >= EXAMPLES else default for s in scores]
    return np.array(thresholds), float(np.median(best)) if best else 1.0


def miss_rates(images: Iterable[tuple[Sequence[Part], Sequence[KnownImplant]]], default: float) -> Array:
    """[4] share of the annotated parts of every slot that have no detected part."""
    found, total = np.zeros(len(SLOTS)), np.zeros(len(SLOTS))
    for parts, known in images:
        for k, slot in enumerate(SLOTS):
            truth = [implant.boxes[slot] for implant in known if slot in implant.boxes]
            total[k] += len(truth)
            found[k] += len(match([part.box for part in parts if part.third == slot], truth))
    return np.clip(np.where(total >= EXAMPLES, 1 - found / np.maximum(total, 1), default), *RATES)


def box_noise(images: Iterable[tuple[Sequence[Part], Sequence[KnownImplant]]], default: float) -> Array:
    """[5, 2] standard deviation of the edges of every slot that run across the axis of the implant, and along it.

    In mean sides of the annotated box. Where one third ends and the next begins is less plain than where the implant
    does. The median counts, so that a part that was matched to the wrong implant makes no difference. The last row is
    that of whole implants of which no third was detected: they are the hard ones.
    """
    errors: list[tuple[list[float], list[float]]] = [([], []) for _ in range(len(SLOTS) + 1)]
    for parts, known in images:
        seen: set[int] = set()  # implants of which a third was detected
        for k, slot in enumerate(SLOTS):
            mine = [part.box for part in parts if part.third == slot]
            truth = [
                (j, i.boxes[slot], axis)
                for j, i in enumerate(known)
                if slot in i.boxes and (axis := i.direction) is not None
            ]
            for index, true in match(mine, [box for _, box, _ in truth]):
                owner, box, axis = truth[true]
                left, top, right, bottom = box
                error = (np.array(mine[index]) - box) / ((right - left + bottom - top) / 2)
                upright = int(np.argmax(np.abs(axis)))  # the edges at right angles to the nearer coordinate axis
                alone = slot == SYSTEM and owner not in seen  # it comes after the thirds
                errors[k + alone][0].extend(error[upright::2].tolist())
                errors[k + alone][1].extend(error[1 - upright :: 2].tolist())
                seen.add(owner)
    noise = [
        [median_abs_deviation(e, scale="normal") if len(e) >= EXAMPLES else np.nan for e in of_slot]
        for of_slot in errors
    ]
    noise[-1] = np.where(np.isnan(noise[-1]), noise[-2], noise[-1]).tolist()
    return np.nan_to_num(noise, nan=default)


def part_features(parts: Sequence[Part]) -> Array:
    """[P, 3] what says how likely parts are right: log-odds of the best score, sum of the scores of all readings, 1."""
    return np.array([_features(part) for part in parts]).reshape(-1, 3)


def _features(part: Part) -> tuple[float, float, float]:
    # Plain numbers: an image has few parts, and this is asked for every implant.
    limit = 1 / (1 + math.exp(MAX_LOG_ODDS))
    score = min(max(part.score, limit), 1 - limit)
    return math.log(score / (1 - score)), sum(reading.score for reading in part.readings), 1.0


def part_coefficients(images: Iterable[tuple[Sequence[Part], Sequence[KnownImplant]]], default: Array) -> Array:
    """[4, 3] cost of leaving a part unexplained by its features: ``PLACE`` plus the log-odds that it is right.

    Args:
        images: parts and known implants of every image.
        default: [4, 3] for slots of which there are too few right or too few wrong parts to tell.
    """
    features: list[list[Array]] = [[] for _ in SLOTS]
    right: list[list[bool]] = [[] for _ in SLOTS]
    for parts, known in images:
        for k, slot in enumerate(SLOTS):
            mine = [part for part in parts if part.third == slot]
            truth = [implant.boxes[slot] for implant in known if slot in implant.boxes]
            matched = dict(match([part.box for part in mine], truth))
            features[k].append(part_features(mine))
            right[k] += [index in matched for index in range(len(mine))]
    coefficients = default.copy()
    for k, labels in enumerate(right):
        if min(labels.count(False), labels.count(True)) >= EXAMPLES:
            regression = LogisticRegression(max_iter=1000).fit(np.concatenate(features[k])[:, :2], labels)
            coefficients[k] = [*regression.coef_[0], regression.intercept_[0] + PLACE[k]]
    return coefficients


class Learned(NamedTuple):
    """What assembled validation images teach.

    Attributes:
        whole_weights: [2] weight of whole-implant boxes, without and with all three thirds.
        score_coefficients: of implant scores.
        samples: implants that were found.
        straying: how many times as far as their deviations say the edges of inferred thirds are off.
    """

    whole_weights: Array
    score_coefficients: Array | None
    samples: list[Sample]
    straying: float


def learn_from(
    outcomes: Iterable[tuple[str, tuple[int, int], Assembly, Sequence[KnownImplant]]], default_weight: float = 0.5
) -> Learned:
    """Compare assembled images with the known implants in them; every image comes with its patient and (H, W)."""
    pairs, features, correct = [], [], []
    for group, image_size, assembly, known in outcomes:
        found = [implant.box for implant in assembly.implants]
        matched = dict(match_in_order(found, [implant.box for implant in known]))
        for index, implant in enumerate(assembly.implants):
            features.append(score_features(implant.parts, implant.whole))
            correct.append(index in matched)
            if index in matched:
                pairs.append((group, implant, known[matched[index]], image_size))
    samples = [
        Sample(readings_of(implant.parts, implant.whole), truth.values, truth.system, truth.product_line, group)
        for group, implant, truth, _ in pairs
        if truth.system is not None
    ]
    coefficients = fit_scores(np.array(features), np.array(correct)) if features else None
    weights = whole_weights((pair[1:] for pair in pairs), default_weight)
    return Learned(weights, coefficients, samples, straying((found, truth) for _, found, truth, _ in pairs))


def straying(pairs: Iterable[tuple[Implant, KnownImplant]]) -> float:
    """How many times as far as their deviations say the edges of inferred thirds are off; 1 where too few tell.

    Deviations are learned from annotated thirds, and those that a detector misses are the hard ones. With this factor
    1.96 deviations hold 95 % of the edges, as they would if errors were normal; their tails are heavier.
    """
    ratios = [
        np.abs(np.subtract(part.box, truth.boxes[part.third])) / part.box_std
        for implant, truth in pairs
        for part in implant.parts
        if part.box_std is not None and part.third in truth.boxes
    ]
    if len(ratios) < EXAMPLES:
        return 1.0
    return max(float(np.quantile(ratios, 0.95)) / TWO_SIDED_95, MIN_STRAYING)


def whole_weights(pairs: Iterable[tuple[Implant, KnownImplant, tuple[int, int]]], default: float) -> Array:
    """[2] weight of the whole-implant box, without and with all three thirds: which comes closest to the annotated box.

    Of ``WEIGHTS``, the one whose ``(1 - weight) * parts + weight * whole``, as far as it lies in the image, has the
    largest mean IoU: what is reported, and less than squared errors the matter of a few bad boxes.

    Args:
        pairs: assembled and known implants with the (H, W) of their image.
        default: weight where there are too few to tell.
    """
    boxes: list[list[Array]] = [[], []]
    for implant, known, (height, width) in pairs:
        # Without a third that is seen they are inferred from the whole, and one or two without direction are no box.
        if implant.whole is not None and implant.observed and len(implant.parts) == len(THIRDS):
            parts = union(np.array([part.box for part in implant.parts]))
            rows = np.array([parts, implant.whole.box, known.box, (width, height, width, height)])
            boxes[int(len(implant.observed) == len(THIRDS))].append(rows)
    weights = np.full(2, default)
    for k, found in enumerate(boxes):
        if len(found) >= EXAMPLES:
            parts, whole, truth, frame = np.stack(found, axis=1)
            mixed = np.clip(parts + WEIGHTS[:, None, None] * (whole - parts), 0, frame)
            weights[k] = WEIGHTS[iou(mixed, truth).mean(axis=1).argmax()]
    return weights


def score_features(parts: Sequence[Part], whole: Part | None) -> Array:
    """[12] what an implant's score depends on: ``part_features`` of each slot, from 0 on; 0 where it is missing."""
    detected = {part.third: part for part in (*parts, *filter(None, (whole,))) if not part.inferred}
    rows = [_features(detected[slot]) if slot in detected else (-MAX_LOG_ODDS, 0.0, 0.0) for slot in SLOTS]
    return np.array([value for log_odds, *others in rows for value in (log_odds + MAX_LOG_ODDS, *others)])


def fit_scores(features: Array, correct: Array) -> Array | None:
    """[13] coefficients and intercept of a logistic regression; None where there is only one kind of implant."""
    if len(np.unique(correct)) < 2:
        return None
    regression = LogisticRegression(max_iter=1000).fit(features, correct)
    return np.r_[regression.coef_[0], regression.intercept_]


def implant_score(features: Array, coefficients: Array) -> float:
    """Probability that it is an implant."""
    return float(1 / (1 + np.exp(-(features @ coefficients[:-1] + coefficients[-1]))))


def mean_score(parts: Sequence[Part], whole: Part | None, slots: int) -> float:
    """The score before calibration: the mean over the ``slots`` that the implant could have, 0 where one is missing."""
    return sum(part.score for part in (*parts, *filter(None, (whole,))) if not part.inferred) / slots
