"""What the second stage speaks of: readings of design axes, parts, implants, rankings of systems.

Coordinates are pixels of the image, (0, 0) at the top left corner of the top left pixel. Boxes are
``(x0, y0, x1, y1)``. A whole-implant detection is a part as well: its ``third`` is ``system``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from implantdet.taxonomy import SYSTEM, THIRDS

SLOTS = (*THIRDS, SYSTEM)
Box = tuple[float, float, float, float]
Point = tuple[float, float]
Scale = float | Sequence[Sequence[float]]  # millimetres per pixel; or [2, 2], from steps in pixels to millimetres


def checked_scale(mm_per_pixel: Scale | None) -> Scale | None:
    """The same scale in Python's own numbers.

    Raises:
        ValueError: it is no number above 0, nor [2, 2] numbers of an area that is not 0.
    """
    if mm_per_pixel is None:
        return None
    with suppress(ValueError):  # rows of different lengths
        scale = np.array(mm_per_pixel)
        if scale.dtype.kind in "iuf" and np.isfinite(scale).all():
            if scale.shape == () and scale > 0:
                return float(scale)
            if scale.shape == (2, 2) and scale[0, 0] * scale[1, 1] != scale[0, 1] * scale[1, 0]:
                return [[float(value) for value in row] for row in scale]
    raise ValueError(
        f"mm_per_pixel: found {mm_per_pixel!r}, expected a number above 0, or [[a, b], [c, d]] of an area that is not 0"
    )


class Reading(NamedTuple):
    """One detection: the value that it gives to an axis.

    Attributes:
        axis: ``<third>.<axis>``, or ``system``.
        value: of the axis, or the name of a system.
        score: in [0, 1].
        detection: its index in the detector's ``Instances``.
    """

    axis: str
    value: str
    score: float
    detection: int


@dataclass(frozen=True)
class Part:
    """One third of an implant, or a whole implant, with everything that was said about it.

    Attributes:
        third: ``coronal``, ``middle``, ``apical`` or ``system``.
        box: where it lies.
        score: of its best reading; 0 if it is inferred.
        readings: at most one per axis.
        rivals: readings at the same place that lost to a better one of the same axis.
        box_std: standard deviation of every coordinate of ``box``, in pixels, if the part is inferred.
    """

    third: str
    box: Box
    score: float
    readings: tuple[Reading, ...] = ()
    rivals: tuple[Reading, ...] = ()
    box_std: Box | None = None

    def __post_init__(self) -> None:
        if self.third not in SLOTS:
            raise ValueError(f"Part.third: found {self.third!r}, expected one of {SLOTS}")
        _check_box("Part", self.box)
        _check_score("Part", self.score)
        axes = [reading.axis for reading in self.readings]
        if len(set(axes)) != len(axes):
            raise ValueError(f"Part.readings: more than one detection of an axis: {axes}")

    @property
    def inferred(self) -> bool:
        """Whether the part was predicted instead of detected."""
        return self.box_std is not None


class Evidence(NamedTuple):
    """What one axis says about a system or a product line.

    Attributes:
        axis: ``<third>.<axis>``, or ``system`` for a whole-implant detection.
        value: that was read.
        score: of the reading.
        weight: in nats; positive speaks for, negative against.
    """

    axis: str
    value: str
    score: float
    weight: float


class Candidate(NamedTuple):
    """A system or product line in a ranking.

    Attributes:
        name: of the system, or title of the line.
        probability: in [0, 1].
        rank: from 1; equals share a rank.
        evidence: heaviest first.
    """

    name: str
    probability: float
    rank: int
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True)
class Ranking:
    """Which system and which product line an implant may be.

    Attributes:
        systems: every system, most probable first.
        lines: every product line, most probable first.
        system_set: systems that hold the true one at the calibrated coverage, at least one; None before calibration.
        line_set: the same for product lines.
        fit: how well the design fits a known line, the higher the better, as ``design_fit`` measures it; None if no
            axis of it was read.
        unknown: whether ``fit`` is below what known implants reach; None where there is none, or too few patients told
            what they reach.
    """

    systems: tuple[Candidate, ...]
    lines: tuple[Candidate, ...]
    system_set: tuple[str, ...] | None
    line_set: tuple[str, ...] | None
    fit: float | None
    unknown: bool | None


@dataclass(frozen=True)
class Implant:
    """One implant.

    Attributes:
        parts: coronal to apical, at most one of each third, detected or inferred.
        whole: the whole-implant detection that belongs to it, if there is one.
        box: around the implant.
        score: that it is an implant, in [0, 1].
        axis: coronal and apical end; None where the direction cannot be told.
        width: largest width across the axis, in pixels; None without an axis.
        mm_per_pixel: scale, where it is known; where pixels are not square, 2×2.
        ranking: its system; None of an implant that was made without.
    """

    parts: tuple[Part, ...]
    whole: Part | None
    box: Box
    score: float
    axis: tuple[Point, Point] | None = None
    width: float | None = None
    mm_per_pixel: Scale | None = None
    ranking: Ranking | None = None

    def __post_init__(self) -> None:
        _check_box("Implant", self.box)
        _check_score("Implant", self.score)
        order = [THIRDS.index(part.third) for part in self.parts]
        if order != sorted(set(order)):
            raise ValueError(f"Implant.parts: expected each third once, coronal to apical; found {order}")
        if self.whole is not None and self.whole.third != SYSTEM:
            raise ValueError(f"Implant.whole: expected a part of 'system'; found {self.whole.third!r}")
        if not self.parts and self.whole is None:
            raise ValueError("Implant: expected a part or a whole-implant detection; found neither")

    @property
    def observed(self) -> tuple[Part, ...]:
        """Detected parts, the whole-implant detection not counted."""
        return tuple(part for part in self.parts if not part.inferred)

    @property
    def readings(self) -> dict[str, Reading]:
        """What was read of every assessed axis."""
        return {reading.axis: reading for part in self.observed for reading in part.readings}

    @property
    def length(self) -> float | None:
        """Pixels between the ends of the axis."""
        return None if self.axis is None else math.dist(*self.axis)

    @property
    def tilt(self) -> float | None:
        """Degrees from apex down, clockwise in the image, in (-180, 180]."""
        if self.axis is None:
            return None
        (x0, y0), (x1, y1) = self.axis
        return math.degrees(math.atan2(x0 - x1, y1 - y0))

    @property
    def length_mm(self) -> float | None:
        """``length`` in millimetres, where the scale is known; magnification is not corrected."""
        if self.axis is None or self.length is None or self.mm_per_pixel is None:
            return None
        if isinstance(self.mm_per_pixel, int | float):
            return self.length * self.mm_per_pixel
        (x0, y0), (x1, y1) = self.axis
        (a, b), (c, d) = self.mm_per_pixel
        return math.hypot(a * (x1 - x0) + b * (y1 - y0), c * (x1 - x0) + d * (y1 - y0))

    @property
    def width_mm(self) -> float | None:
        """``width`` in millimetres, where the scale is known; magnification is not corrected."""
        if self.width is None or self.mm_per_pixel is None:
            return None
        if isinstance(self.mm_per_pixel, int | float):
            return self.width * self.mm_per_pixel
        if not self.length or not self.length_mm:
            return None
        # What is square to the axis in pixels is not so in millimetres; the area along the axis is.
        (a, b), (c, d) = self.mm_per_pixel
        return self.width * self.length * abs(a * d - b * c) / self.length_mm


@dataclass(frozen=True)
class Assembly:
    """The parts of one image, explained.

    Attributes:
        implants: best score first.
        unexplained: parts that belong to no implant; false positives, as far as can be told.
    """

    implants: tuple[Implant, ...]
    unexplained: tuple[Part, ...]

    def __post_init__(self) -> None:
        used = [
            reading.detection
            for implant in self.implants
            for part in (*implant.observed, *filter(None, (implant.whole,)))
            for reading in part.readings
        ]
        if len(set(used)) != len(used):
            raise ValueError("Assembly: two implants share a detection")


def _check_box(owner: str, box: Box) -> None:
    if len(box) != 4 or not all(map(math.isfinite, box)) or box[0] > box[2] or box[1] > box[3]:
        raise ValueError(f"{owner}.box: expected finite (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1; found {box}")


def _check_score(owner: str, score: float) -> None:
    if not 0 <= score <= 1:
        raise ValueError(f"{owner}.score: expected a number in [0, 1]; found {score}")
