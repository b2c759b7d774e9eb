"""Members to implants: missing parts, box, axis, width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from implantdet.assembly.candidates import WHOLE
from implantdet.assembly.completion import WHOLE_ALONE, ThirdRegression, complete
from implantdet.assembly.geometry import Array, Indices, centres, oriented_size, sizes, unit
from implantdet.assembly.likelihood import Pattern
from implantdet.data.edge import is_at_frame
from implantdet.structures import Box, Part, Point
from implantdet.taxonomy import THIRDS

OUTER: Pattern = (0, 2)
APART = 0.15  # sides of the whole implant that an outer third lies off its centre, from which the two show a direction


@dataclass(frozen=True)
class Outline:
    """An implant before it has a score and a system.

    Attributes:
        parts: coronal to apical, detected or inferred.
        whole: the whole-implant detection, if there is one.
        box: round the parts, moved towards that of ``whole``, as far as it lies in the image: annotations end at the
            frame, inferred thirds do not.
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
    image_size: tuple[int, int],
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
        image_size: (H, W).
    """
    rows = [[parts[i] if i >= 0 else None for i in row] for row in members.tolist()]
    senses = _senses(parts, members, axis)
    found = _thirds(rows, senses, aspects, regressions, image_size)
    # Wherever the direction is known, the thirds are complete.
    known = iter(_axes([thirds for thirds, sense in zip(found, senses, strict=True) if sense is not None], aspects))
    height, width = image_size
    boxes = [_box(thirds, row[WHOLE], whole_weights) for row, thirds in zip(rows, found, strict=True)]
    clipped = np.clip(np.reshape(boxes, (-1, 4)), 0, (width, height, width, height)).tolist()
    return [
        Outline(thirds, row[WHOLE], (x0, y0, x1, y1), *((None, None) if u is None else next(known)))
        for row, thirds, (x0, y0, x1, y1), u in zip(rows, found, clipped, senses, strict=True)
    ]


def _senses(parts: Sequence[Part], members: Indices, axis: Array | None) -> list[Array | None]:
    """Direction of every implant.

    From its own thirds; with one of the two outer ones, from that and the whole implant; or else the axis of the image,
    in the sense of the nearest implant beside it that shows one. None where there is none: those above or below it may
    be in the other jaw.
    """
    boxes = np.array([part.box for part in parts]).reshape(-1, 4)
    points = centres(boxes)
    there = members >= 0
    thirds = there[:, :WHOLE]
    # A whole implant stands for the third at the other end.
    first = np.where(thirds.any(axis=1), thirds.argmax(axis=1), WHOLE)
    last = np.where(thirds.any(axis=1), WHOLE - 1 - thirds[:, ::-1].argmax(axis=1), WHOLE)
    is_single = (thirds.sum(axis=1) == 1) & there[:, WHOLE]
    last = np.where(is_single & (first == 0), WHOLE, last)
    first = np.where(is_single & (last == WHOLE - 1), WHOLE, first)
    each = np.arange(len(members))
    ends = points[members[each, last]] - points[members[each, first]]
    far = np.hypot(*ends.T) > APART * sizes(boxes)[members[:, WHOLE]].max(axis=1)
    shown = (thirds.sum(axis=1) > 1) | (is_single & (first != last) & far)
    if not shown.any():
        return [None] * len(members)
    own = unit(ends)
    senses: list[Array | None] = [u if is_shown else None for u, is_shown in zip(own, shown, strict=True)]
    if axis is not None and not shown.all():
        places = np.array([points[row[row >= 0]].mean(axis=0) for row in members])
        reach = sizes(boxes) @ np.abs(axis) / 2
        low, high = (
            np.array([limit((points @ axis + sign * reach)[row[row >= 0]]) for row in members])
            for limit, sign in ((np.min, -1), (np.max, 1))
        )
        for index in np.flatnonzero(~shown):
            beside = np.flatnonzero(shown & (low < high[index]) & (high > low[index]))
            if len(beside):
                nearest = beside[np.hypot(*(places[beside] - places[index]).T).argmin()]
                senses[index] = axis if axis @ own[nearest] >= 0 else -axis
    return senses


def _thirds(
    rows: Sequence[Sequence[Part | None]],
    senses: Sequence[Array | None],
    aspects: Array,
    regressions: Mapping[tuple[Pattern, int], ThirdRegression],
    image_size: tuple[int, int],
) -> list[tuple[Part, ...]]:
    """The thirds of every implant, coronal to apical; those that are missing inferred where the direction is known."""
    found = [{slot: part for slot, part in enumerate(row) if part is not None} for row in rows]
    alike: dict[Pattern, list[tuple[int, Array]]] = {}  # those that miss the same thirds are completed together
    for index, (there, direction) in enumerate(zip(found, senses, strict=True)):
        seen = tuple(slot for slot in there if slot != WHOLE)
        # Where an implant ends its whole box shows better than its thirds: what is taken for one may span two. A middle
        # third ends at its neighbours, and of an implant that the frame cuts the whole box is not all.
        is_cut = any(is_at_frame(part.box, *image_size) for part in there.values())
        ends_elsewhere = seen == OUTER or (seen and is_cut)
        pattern = WHOLE_ALONE if WHOLE in there and not ends_elsewhere else seen
        if direction is not None and len(seen) < len(THIRDS):
            alike.setdefault(pattern, []).append((index, direction))
    for pattern, group in alike.items():
        boxes = np.array([[found[index][slot].box for slot in pattern] for index, _ in group])
        directions = np.array([direction for _, direction in group])
        for slot, (inferred, stds) in complete(boxes, pattern, directions, aspects, regressions).items():
            for (index, _), box, std in zip(group, inferred.tolist(), stds.tolist(), strict=True):
                (x0, y0, x1, y1), (s0, s1, s2, s3) = box, std
                found[index].setdefault(slot, Part(THIRDS[slot], (x0, y0, x1, y1), 0.0, box_std=(s0, s1, s2, s3)))
    return [tuple(there[slot] for slot in range(WHOLE) if slot in there) for there in found]


def _axes(implants: Sequence[Sequence[Part]], aspects: Array) -> list[tuple[tuple[Point, Point], float]]:
    """Coronal and apical end of the axis, and the largest width across it, of implants of three thirds."""
    boxes = np.array([[part.box for part in thirds] for thirds in implants]).reshape(-1, len(THIRDS), 4)
    points = centres(boxes)
    direction = unit(points[:, -1] - points[:, 0])
    length, width = oriented_size(sizes(boxes), direction[:, None], aspects)
    coronal = points[:, 0] - direction * length[:, :1] / 2
    apical = points[:, -1] + direction * length[:, -1:] / 2
    rows = zip(coronal.tolist(), apical.tolist(), width.max(axis=1).tolist(), strict=True)
    return [(((x0, y0), (x1, y1)), across) for (x0, y0), (x1, y1), across in rows]


def _box(thirds: Sequence[Part], whole: Part | None, whole_weights: Array) -> Box:
    """Round the thirds, moved towards the box of the whole implant.

    That box alone, where no third is seen, or one lacks others that nothing could be inferred of: it bounds no implant.
    """
    if whole is not None and (len(thirds) < len(THIRDS) or all(part.inferred for part in thirds)):
        return whole.box
    left, top, right, bottom = zip(*(part.box for part in thirds), strict=True)
    box = (min(left), min(top), max(right), max(bottom))
    if whole is None:
        return box
    is_seen = len(thirds) == len(THIRDS) and not any(part.inferred for part in thirds)
    weight = float(whole_weights[int(is_seen)])
    x0, y0, x1, y1 = ((1 - weight) * a + weight * b for a, b in zip(box, whole.box, strict=True))
    return (x0, y0, x1, y1)
