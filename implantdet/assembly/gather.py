"""Detections to parts: drop the weak ones, then join those of one third that lie on one another."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from detectron2.structures import Instances

from implantdet.assembly.geometry import Array, Indices, iou
from implantdet.structures import SLOTS, Part, Reading
from implantdet.taxonomy import SYSTEM, Taxonomy

logger = logging.getLogger(__name__)

COINCIDENT_IOU = 0.3  # detections of one third that overlap as much speak of the same third
COINCIDENT_WHOLE_IOU = 0.5  # and of the same implant; boxes of neighbours that lean overlap more than their thirds do
MIN_SIDE = 1e-3  # pixels; thinner boxes are no boxes


class Meaning(NamedTuple):
    """What a class of the detector says: a slot of the implant, an axis of its design, a value."""

    slot: str
    axis: str
    value: str


class Detections(NamedTuple):
    """The usable detections of one image: [N, 4] boxes, [N] scores, [N] classes, [N] index in the Instances."""

    boxes: Array
    scores: Array
    classes: Indices
    indices: Indices


def meanings(thing_classes: Sequence[str], taxonomy: Taxonomy) -> tuple[Meaning | None, ...]:
    """Meaning of every class; None for classes that are neither part nor system.

    Raises:
        ValueError: no class is a part or a system.
    """
    found: list[Meaning | None] = []
    for name in thing_classes:
        axis = taxonomy.axis_of(name)
        if axis is not None:
            found.append(Meaning(axis.third, axis.key, name.removeprefix(f"{axis.key}.")))
        else:
            found.append(Meaning(SYSTEM, SYSTEM, name) if name in taxonomy.systems else None)
    pairs = zip(thing_classes, found, strict=True)
    strange = [name for name, meaning in pairs if meaning is None and name.count(".") == 2]
    if strange:
        logger.warning(
            "Classes %s look like parts, but are none of the taxonomy: the assembly leaves them aside.",
            ", ".join(map(repr, strange)),
        )
    if not any(found):
        raise ValueError(
            f"thing_classes: none of {list(thing_classes)} is a part or a system of the taxonomy; expected names like "
            f"{taxonomy.part_categories[0]!r} or {taxonomy.systems[0]!r}"
        )
    return tuple(found)


def usable(instances: Instances, classes: Sequence[Meaning | None]) -> Detections:
    """The detections that can be worked with: finite, with an area, of a class that means something.

    Raises:
        ValueError: a class index is out of range.
    """
    boxes = instances.pred_boxes.tensor.detach().double().cpu().numpy().reshape(-1, 4)
    scores = instances.scores.detach().double().cpu().numpy()  # numpy has no bfloat16
    kinds = instances.pred_classes.detach().cpu().numpy()
    if len(kinds) and not 0 <= kinds.min() <= kinds.max() < len(classes):
        raise ValueError(f"pred_classes: found {kinds.min()}…{kinds.max()}, expected 0…{len(classes) - 1}")
    meant = np.array([meaning is not None for meaning in classes])
    with np.errstate(invalid="ignore"):
        keep = np.isfinite(boxes).all(axis=1) & np.isfinite(scores) & meant[kinds]
        keep &= (boxes[:, 2:] - boxes[:, :2] > MIN_SIDE).all(axis=1)
    indices = np.flatnonzero(keep)
    return Detections(boxes[keep], np.clip(scores[keep], 0, 1), kinds[keep], indices)


def drop_weak(detections: Detections, min_scores: Array, typical_best: float) -> Detections:
    """Adaptive thresholds: one per category, lowered in images where everything scores low.

    Args:
        detections: of one image.
        min_scores: [classes] threshold of every category.
        typical_best: best score of an ordinary image; where the best score here is lower, so are the thresholds.
    """
    if not len(detections.scores):
        return detections
    level = min(1.0, detections.scores.max() / typical_best)
    keep = detections.scores >= min_scores[detections.classes] * level
    return Detections(*(array[keep] for array in detections))


def gather(detections: Detections, classes: Sequence[Meaning | None]) -> list[Part]:
    """Join coincident detections of one third into parts, best score first.

    A part keeps one reading per axis; a second value of the same axis at the same place is a rival. Its box is the
    mean of all of them, weighted by score. The order of the detections makes no difference.
    """
    boxes, scores, kinds, indices = detections
    slots = np.array([-1 if meaning is None else SLOTS.index(meaning.slot) for meaning in classes])[kinds]
    overlap = np.where(slots[:, None] == slots, iou(boxes[:, None], boxes), 0.0)
    together = overlap >= np.where(slots == SLOTS.index(SYSTEM), COINCIDENT_WHOLE_IOU, COINCIDENT_IOU)
    # Of equal scores the one in the middle leads, however the image is turned.
    support = overlap.sum(axis=1).round(6)
    order = np.lexsort((*boxes.T, kinds, -support, -scores))
    boxes, scores, kinds, indices = boxes[order], scores[order], kinds[order], indices[order]
    slots, together = slots[order], together[np.ix_(order, order)]
    owner = np.full(len(boxes), -1)
    leaders: list[int] = []
    for index, row in enumerate(together):
        if owner[index] < 0:
            owner[row & (owner < 0)] = len(leaders)
            leaders.append(index)
    weights = np.maximum(scores, 1e-6)
    total = np.bincount(owner, weights, len(leaders))
    means = np.stack([np.bincount(owner, weights * side, len(leaders)) / total for side in boxes.T], axis=1)
    readings: list[dict[str, Reading]] = [{} for _ in leaders]
    rivals: list[list[Reading]] = [[] for _ in leaders]
    rows = zip(owner.tolist(), kinds.tolist(), scores.tolist(), indices.tolist(), strict=True)
    for part, kind, score, index in rows:
        meaning = classes[kind]
        assert meaning is not None, "usable() has dropped these"
        reading = Reading(meaning.axis, meaning.value, score, index)
        if readings[part].setdefault(meaning.axis, reading) is not reading:
            rivals[part].append(reading)
    return [
        Part(SLOTS[slots[leader]], (x0, y0, x1, y1), float(scores[leader]), tuple(said.values()), tuple(others))
        for leader, (x0, y0, x1, y1), said, others in zip(leaders, means.tolist(), readings, rivals, strict=True)
    ]
