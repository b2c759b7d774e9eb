"""Members to implants: missing parts, box, axis, width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from implantdet.assembly.candidates import WHOLE
from implantdet.assembly.completion import ThirdRegression, complete
from implantdet.assembly.geometry import Array, Indices, centres, oriented_size, sizes, union, unit
from implantdet.assembly.likelihood import Pattern
from implantdet.structures import Box, Part, Point
from implantdet.taxonomy import THIRDS


@dataclass(frozen=True)
class Outline:
    """An implant before it has a score and a system.

    Attributes:
        parts: coronal to apical, detected or inferred.
        whole: the whole-implant detection, if there is one.
        box: round the parts, moved towards that of ``whole``.
        axis: coronal and apical end, where the direction is known.
        width: largest across the axis.
    """

    parts: tuple[Part, ...]
    whole: Part | None
    box: Box
    axis: tuple[Point, Point] | None
    width: float | None


def outlines(
    parts: Sequence[Part],
    members: Indices,
    aspects: Array,
    regressions: Mapping[tuple[Pattern, int], ThirdRegression],
    whole_weights: Array,
    axis: Array | None,
) -> list[Outline]:
    """Outlines of the [C, 4] groups of parts.

    Args:
        parts: of the image.
        members: rows of part indices, -1 where there is none.
        aspects: [3] usual width / length.
        regressions: for missing thirds.
        whole_weights: [2] weight of the whole-implant box against that of the parts: where a third is inferred or
            missing, and where none is.
        axis: [2] that the implants of the image share, where it is known.
    """
    senses = _senses(parts, members, axis)
    return [
        _outline([parts[i] if i >= 0 else None for i in row], sense, aspects, regressions, whole_weights)
        for row, sense in zip(members.tolist(), senses, strict=True)
    ]


def _senses(parts: Sequence[Part], members: Indices, axis: Array | None) -> list[Array | None]:
    """Direction of every implant: from its own thirds, or else the axis of the image with its neighbour's sense."""
    own: list[Array | None] = []
    places = []
    for row in members.tolist():
        thirds = np.array([parts[i].box for i in row[:WHOLE] if i >= 0])
        own.append(unit(centres(thirds[-1]) - centres(thirds[0])) if len(thirds) > 1 else None)
        places.append(centres(np.array([parts[i].box for i in row if i >= 0])).mean(axis=0))
    if axis is None or all(u is None for u in own):
        return own
    known = [(place, u) for place, u in zip(places, own, strict=True) if u is not None]
    return [
        _with_sense(axis, min(known, key=lambda other: math.dist(other[0], place))[1]) if u is None else u
        for place, u in zip(places, own, strict=True)
    ]


def _with_sense(axis: Array, neighbour: Array) -> Array:
    """The direction along ``axis`` that points the way of ``neighbour``."""
    return axis if axis @ neighbour >= 0 else -axis


def _outline(
    row: Sequence[Part | None],
    direction: Array | None,
    aspects: Array,
    regressions: Mapping[tuple[Pattern, int], ThirdRegression],
    whole_weights: Array,
) -> Outline:
    whole = row[WHOLE]
    thirds = {slot: part for slot, part in enumerate(row[:WHOLE]) if part is not None}
    if not thirds:
        assert whole is not None, "a candidate has a member"
        return Outline((), whole, whole.box, None, None)
    if direction is not None and len(thirds) < len(THIRDS):
        pattern = tuple(thirds)
        boxes = np.array([part.box for part in thirds.values()])
        for slot, (box, std) in complete(boxes, pattern, direction, aspects, regressions).items():
            thirds[slot] = Part(THIRDS[slot], _box(box), 0.0, box_std=_box(std))
    found = tuple(thirds[slot] for slot in sorted(thirds))
    boxes = np.array([part.box for part in found])
    box = union(boxes)
    if whole is not None:
        weight = whole_weights[int(not any(part.inferred for part in found) and len(found) == len(THIRDS))]
        box = (1 - weight) * box + weight * np.array(whole.box)
    if direction is None:
        return Outline(found, whole, _box(box), None, None)
    direction = unit(centres(boxes[-1]) - centres(boxes[0]))
    length, width = oriented_size(sizes(boxes), direction, aspects)
    coronal, apical = centres(boxes[0]) - direction * length[0] / 2, centres(boxes[-1]) + direction * length[-1] / 2
    ends = ((float(coronal[0]), float(coronal[1])), (float(apical[0]), float(apical[1])))
    return Outline(found, whole, _box(box), ends, float(width.max()))


def _box(values: Array) -> Box:
    x0, y0, x1, y1 = values.tolist()
    return (x0, y0, x1, y1)
