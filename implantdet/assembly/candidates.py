"""Sets of parts that may be one implant, few by construction.

Letters: P parts of an image, C candidates, K nearest neighbours. A candidate is a row of four part indices
(coronal, middle, apical, whole implant), -1 where it lacks one.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from implantdet.assembly.geometry import (
    Array,
    Bools,
    Indices,
    angle_to_axis,
    centres,
    intersection_area,
    iou,
    oriented_size,
    sizes,
    unit,
)
from implantdet.assembly.likelihood import PAIRS, PATTERNS, ImplantModel, tail_cost
from implantdet.structures import SLOTS, Scale

NEIGHBOURS = 6  # nearest parts of another slot that are considered for a part
REACH = 2.0  # distance of adjoining thirds at most, in mean larger sides of their boxes
INSIDE = 0.3  # share of the thirds that has to lie in a whole implant that they may belong to
NEW = 3.0  # nats that every implant costs, so that one is preferred to two halves
SAME = 0.5  # share of the smaller of two boxes, or IoU with a whole implant, from which they are one implant
PER_PART = 12  # candidates that a part is left with
ENLARGED = 1.25  # a panoramic radiograph shows an implant so many times as long as it is, and rarely more
CROWN_HEIGHT = 4.0  # thirds of an implant that a crown on it is high at most
LENGTH_STD = 0.1  # of the logarithm of lengths beyond that: a zygomatic implant that shows all its thirds remains one
WHOLE = len(SLOTS) - 1
_BITS = (1, 2, 4)
_PATTERN = np.zeros(8, np.intp)  # index in PATTERNS of the thirds whose bits are set
_PATTERN[[sum(_BITS[third] for third in pattern) for pattern in PATTERNS]] = np.arange(len(PATTERNS))


class Parts(NamedTuple):
    """The parts of one image as arrays.

    Attributes:
        boxes: [P, 4].
        slots: [P] index in ``SLOTS``.
        alone: [P] cost of leaving a part unexplained.
    """

    boxes: Array
    slots: Indices
    alone: Array


class Candidates(NamedTuple):
    """Possible implants: [C, 4] ``members`` and their ``costs`` [C] in nats."""

    members: Indices
    costs: Array


def enumerate_candidates(parts: Parts, model: ImplantModel, missing: Array) -> Candidates:
    """Singles, pairs and triples within reach, alone and in whole implants, at most ``PER_PART`` times P of them.

    And every whole implant alone.

    Args:
        parts: of one image.
        model: learned from known implants.
        missing: [4] cost of an implant that lacks the slot.
    """
    singles, pairs, triples = _sets(parts)
    members = np.full((len(singles) + len(pairs) + len(triples), len(SLOTS)), -1)
    members[:, :WHOLE] = np.concatenate([singles, pairs, triples])
    costs = NEW + (members < 0) @ missing
    if len(pairs):
        _, thirds = np.nonzero(pairs >= 0)
        rows = pairs[pairs >= 0].reshape(-1, 2)
        costs[len(singles) :][: len(pairs)] += model.link_cost(parts.boxes[rows], thirds.reshape(-1, 2))
    if len(triples):
        costs[len(singles) + len(pairs) :] += model.link_cost(parts.boxes[triples], np.arange(WHOLE))
    unrooted = Candidates(members, costs)
    loose = _prune(unrooted, parts.alone)
    wholes = np.flatnonzero(parts.slots == WHOLE)
    if not len(wholes):
        return loose
    inside = _inside_wholes(unrooted, wholes, parts, model, missing[WHOLE])
    members = np.concatenate([loose.members, inside.members])
    found = _prune(Candidates(members, np.concatenate([loose.costs, inside.costs])), parts.alone)
    # Where an implant is too small or covered to show its thirds, all three are missing together. Whatever thirds would
    # gain by a whole implant, it can do without them.
    wholes = wholes[parts.alone[wholes] > NEW]
    members = np.full((len(wholes), len(SLOTS)), -1)
    members[:, WHOLE] = wholes
    costs = np.concatenate([found.costs, np.full(len(wholes), NEW)])
    return Candidates(np.concatenate([found.members, members]), costs)


def gains(candidates: Candidates, alone: Array) -> Array:
    """[C] nats that a candidate saves against leaving its parts, of [P] costs ``alone``, unexplained."""
    return np.append(alone, 0.0)[candidates.members].sum(axis=1) - candidates.costs


def prefer_axis(candidates: Candidates, parts: Parts, model: ImplantModel, axis: Array) -> Candidates:
    """The same candidates, charged for their tilt against the axis [2] that the implants of the image share."""
    members, costs = candidates
    tilted = (members[:, :WHOLE] >= 0).sum(axis=1) > 1
    tilt = model.tilt_cost(angle_to_axis(end_to_end(members[tilted], parts), axis))
    costs = costs.copy()
    costs[tilted] += tilt
    return Candidates(members, costs)


def prefer_known_lengths(candidates: Candidates, parts: Parts, mm_per_pixel: Scale, longest: float) -> Candidates:
    """The same candidates, charged for lengths far beyond the ``longest`` product line's, in millimetres.

    The length of two thirds or three follows from the distance of their centres. A whole implant is at least as long as
    the longer side of its box, but for a few percent.
    """
    members, costs = candidates
    scale = np.array(mm_per_pixel) * (np.eye(2) if isinstance(mm_per_pixel, int | float) else 1.0)
    length = np.zeros(len(members))
    linked, first, last = _linked(members)
    points = centres(parts.boxes)
    step = (points[members[linked, last]] - points[members[linked, first]]) @ scale.T
    length[linked] = np.hypot(*step.T) * WHOLE / (last - first)
    rooted = np.flatnonzero(members[:, WHOLE] >= 0)
    sides = sizes(parts.boxes[members[rooted, WHOLE]]) * np.hypot(*scale)
    length[rooted] = np.maximum(length[rooted], sides.max(axis=1, initial=0.0))
    excess = np.log(np.maximum(length / (ENLARGED * longest), 1.0))
    return Candidates(members, costs + tail_cost((excess / LENGTH_STD) ** 2, 1))


def standing_apart(members: Indices, gain: Array, parts: Parts, aspects: Array) -> Indices:
    """[D, 4] implants of which no two are in one place: the given ones, then unexplained whole implants, best first.

    Two true implants hardly ever cover half of the smaller one, while a detector that doubts reports the parts of one
    implant twice. Tilted neighbours are judged by the tilted rectangles that they fill, not by their boxes. Nor do they
    stand on each other: there, a coronal third alone is a crown. A whole implant that nothing explains is an implant
    too, with a score that says how sure it is.

    Args:
        members: [C, 4] implants of the image.
        gain: [C] what each saves against leaving its parts unexplained.
        parts: of the image.
        aspects: [3] usual width / length of the thirds.
    """
    real = ~_are_crowns(members, gain, parts)
    members, gain = members[real], gain[real]
    unexplained = parts.slots == WHOLE
    unexplained[members[members[:, WHOLE] >= 0, WHOLE]] = False
    wholes = np.flatnonzero(unexplained)
    alone = np.full((len(wholes), len(SLOTS)), -1)
    alone[:, WHOLE] = wholes
    best_first = np.argsort(-gain, kind="stable"), np.argsort(-parts.alone[wholes], kind="stable")
    every = np.concatenate([members[best_first[0]], alone[best_first[1]]])
    boxes = _enclosing(every, parts)
    areas = np.prod(sizes(boxes), axis=1)
    in_another = intersection_area(boxes[:, None], boxes) >= SAME * np.minimum(areas[:, None], areas)
    for a, b in np.argwhere(np.triu(in_another[: len(members), : len(members)], 1)).tolist():
        in_another[a, b] = in_another[b, a] = _is_in_one_place(every[[a, b]], parts, aspects)
    # A box of the whole is loose: it may reach over another implant.
    in_another[len(members) :] = iou(boxes[len(members) :, None], boxes) >= SAME
    kept: list[int] = []
    for index, covered in enumerate(in_another):
        if not covered[kept].any():
            kept.append(index)
    return every[kept]


def end_to_end(members: Indices, parts: Parts) -> Array:
    """[C, 2] directions of implants that have two thirds or three: from their first to their last."""
    first = np.where(members[:, 0] >= 0, members[:, 0], members[:, 1])
    last = np.where(members[:, 2] >= 0, members[:, 2], members[:, 1])
    points = centres(parts.boxes)
    return unit(points[last] - points[first])


def _linked(members: Indices) -> tuple[Indices, Indices, Indices]:
    """Rows that have two thirds or three, and the slots of their first and last one."""
    there = members[:, :WHOLE] >= 0
    rows = np.flatnonzero(there.sum(axis=1) > 1)
    return rows, there[rows].argmax(axis=1), WHOLE - 1 - there[rows, ::-1].argmax(axis=1)


def _are_crowns(members: Indices, gain: Array, parts: Parts) -> Bools:
    """[C] which implants are a coronal third alone, right on the coronal end of a surer one that shows its axis."""
    alone = np.flatnonzero((members[:, 0] >= 0) & (members[:, 1:] < 0).all(axis=1))
    shown, first, last = _linked(members)
    crowns = np.zeros(len(members), bool)
    if not (len(alone) and len(shown)):
        return crowns
    points, lone = centres(parts.boxes), members[alone, 0]
    start = points[members[shown, first]]
    third = (points[members[shown, last]] - start) / (last - first)[:, None]  # from one third to the next, apically
    offset = points[lone][:, None] - (start - (first + 0.5)[:, None] * third)  # from the coronal end, [lone, shown]
    apical = unit(third)
    beyond = -(offset * apical).sum(axis=2)
    aside = np.abs(offset[..., 0] * apical[:, 1] - offset[..., 1] * apical[:, 0])
    # A crown is about as large on a long implant.
    reach = np.minimum(np.hypot(*third.T), sizes(parts.boxes[lone]).max(axis=1)[:, None])
    on_top = (beyond > 0) & (beyond < CROWN_HEIGHT / 2 * reach) & (aside < reach)
    crowns[alone] = (on_top & (gain[shown] >= gain[alone][:, None])).any(axis=1)
    return crowns


def _is_in_one_place(pair: Indices, parts: Parts, aspects: Array) -> bool:
    """Whether the rectangles along their axes of two implants, [2, 4], whose boxes do so, cover ``SAME`` of one.

    An implant that does not show its axis is taken for parallel to the other one.
    """
    shown = (pair[:, :WHOLE] >= 0).sum(axis=1) > 1
    if not shown.any():
        return True
    directions = end_to_end(np.where(shown[:, None], pair, pair[shown][0]), parts)
    one, other = (_rectangle(members, u, parts, aspects) for members, u in zip(pair, directions, strict=True))
    _, corners = cv2.rotatedRectangleIntersection(one, other)
    shared = 0.0 if corners is None else cv2.contourArea(cv2.convexHull(corners))
    return shared >= SAME * min(one[1][0] * one[1][1], other[1][0] * other[1][1])


def _rectangle(members: Indices, direction: Array, parts: Parts, aspects: Array) -> cv2.typing.RotatedRect:
    """Centre, length and width, and angle in degrees of the tilted rectangle round the members of an implant."""
    slots = np.flatnonzero(members >= 0)
    boxes = parts.boxes[members[slots]]
    # A whole implant is as wide as its thirds, and as long as all of them together.
    length, width = oriented_size(sizes(boxes), direction, np.append(aspects, aspects.mean() / WHOLE)[slots])
    across = np.array([-direction[1], direction[0]])
    along, aside = centres(boxes) @ direction, centres(boxes) @ across
    low = (along - length / 2).min(), (aside - width / 2).min()
    high = (along + length / 2).max(), (aside + width / 2).max()
    x, y = (low[0] + high[0]) / 2 * direction + (low[1] + high[1]) / 2 * across
    angle = float(np.degrees(np.arctan2(direction[1], direction[0])))
    return (float(x), float(y)), (float(high[0] - low[0]), float(high[1] - low[1])), angle


def _enclosing(members: Indices, parts: Parts) -> Array:
    """[C, 4] boxes round the members of every row, of which each has one at least."""
    there = (members >= 0)[..., None]
    low = np.where(there, parts.boxes[members, :2], np.inf).min(axis=1)
    high = np.where(there, parts.boxes[members, 2:], -np.inf).max(axis=1)
    return np.concatenate([low, high], axis=1)


def _sets(parts: Parts) -> tuple[Indices, Indices, Indices]:
    """[C, 3] singles, pairs and triples."""
    of_slot = [np.flatnonzero(parts.slots == slot) for slot in range(WHOLE)]
    points, side = centres(parts.boxes), sizes(parts.boxes).max(axis=1)
    singles = np.full((sum(map(len, of_slot)), WHOLE), -1)
    singles[np.arange(len(singles)), parts.slots[np.concatenate(of_slot)]] = np.concatenate(of_slot)
    near, pairs = {}, []
    for here, there in (*PAIRS, (1, 0)):
        a, b = of_slot[here], of_slot[there]
        offset = points[a][:, None] - points[b]
        distance = np.hypot(offset[..., 0], offset[..., 1]) / (side[a][:, None] + side[b]) * 2
        nearest = np.argsort(distance, axis=1, kind="stable")[:, :NEIGHBOURS]
        within = np.take_along_axis(distance, nearest, axis=1) <= REACH * abs(here - there)
        near[here, there] = np.where(within, b[nearest] if len(b) else -1, -1)
    for here, there in PAIRS:
        row, column = np.nonzero(near[here, there] >= 0)
        pair = np.full((len(row), WHOLE), -1)
        pair[:, here], pair[:, there] = of_slot[here][row], near[here, there][row, column]
        pairs.append(pair)
    before, after = near[1, 0], near[1, 2]  # of every middle third
    row, i, j = np.nonzero((before >= 0)[:, :, None] & (after >= 0)[:, None, :])
    triples = np.stack([before[row, i], of_slot[1][row], after[row, j]], axis=1)
    return singles, np.concatenate(pairs), triples


def _inside_wholes(
    unrooted: Candidates, wholes: Indices, parts: Parts, model: ImplantModel, no_whole: float
) -> Candidates:
    """The same thirds as members of every whole implant that they lie in, where it gains by them.

    Thirds that are too weak to be an implant by themselves may still belong to one.
    """
    costs = unrooted.costs - no_whole
    worth = np.append(parts.alone, 0.0)[unrooted.members].sum(axis=1) + NEW  # what leaving them beside the whole costs
    able = costs < worth
    members, costs, worth = unrooted.members[able], costs[able], worth[able]
    boxes = _enclosing(members[:, :WHOLE], parts)
    share = intersection_area(boxes[:, None], parts.boxes[wholes]) / np.prod(sizes(boxes), axis=1)[:, None]
    which, whole = np.nonzero(share >= INSIDE)
    pattern = _PATTERN[(members[which, :WHOLE] >= 0) @ _BITS]
    costs = costs[which] + model.whole_cost(boxes[which], parts.boxes[wholes[whole]], pattern)
    gaining = costs < worth[which]
    members = members[which[gaining]]
    members[:, WHOLE] = wholes[whole[gaining]]
    return Candidates(members, costs[gaining])


def _prune(candidates: Candidates, alone: Array) -> Candidates:
    """Candidates that beat leaving their parts unexplained and are among the best of one of their parts."""
    members, costs = candidates
    gain = gains(candidates, alone)
    better = gain > 0
    members, costs, gain = members[better], costs[better], gain[better]
    which, column = np.nonzero(members >= 0)
    part = members[which, column]
    order = np.lexsort((-gain[which], part))
    first = np.searchsorted(part[order], part[order])  # where the run of the same part begins
    keep = np.zeros(len(members), bool)
    keep[which[order][np.arange(len(order)) - first < PER_PART]] = True
    return Candidates(members[keep], costs[keep])
