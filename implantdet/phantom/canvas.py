"""A sheet of optical depth in millimetres of the jaw, onto which anatomy and restorations are added.

Optical depth is attenuation times path length, summed along the ray; Beer and Lambert's exp(-depth) follows in xray.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from implantdet.phantom.arrays import Array
from implantdet.phantom.frame import REACH

# Attenuation per millimetre at an effective energy of dental X-rays, beam hardening folded in.
MU = {
    "soft": 0.025,
    "trabecular": 0.05,
    "cortical": 0.13,
    "dentine": 0.14,
    "enamel": 0.3,
    "pulp": 0.03,
    "gutta": 0.9,
    "titanium": 0.6,
    "ceramic": 0.45,
    "alloy": 2.5,
    "amalgam": 2.2,
}


@dataclass
class Canvas:
    """Optical depth over a rectangle of the jaw.

    Attributes:
        x0, y0: millimetres of the upper left corner.
        width, height: in millimetres.
        step: millimetres per cell.
        tissue: [rows, columns] optical depth of everything but metal and dense ceramic.
        dense: [rows, columns] optical depth of metal and dense ceramic, implants excepted.
        bone: [rows, columns] amount of bone, 0 to 1.
    """

    x0: float
    y0: float
    width: float
    height: float
    step: float
    tissue: Array = field(init=False, repr=False)
    dense: Array = field(init=False, repr=False)
    bone: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        shape = (round(self.height / self.step), round(self.width / self.step))
        self.tissue = np.zeros(shape, np.float32)
        self.dense = np.zeros(shape, np.float32)
        self.bone = np.zeros(shape, np.float32)

    @property
    def x(self) -> Array:
        """[1, columns] millimetres of the cell centres."""
        return (self.x0 + (np.arange(self.tissue.shape[1], dtype=np.float32) + 0.5) * self.step)[None, :]

    @property
    def y(self) -> Array:
        """[rows, 1] millimetres of the cell centres."""
        return (self.y0 + (np.arange(self.tissue.shape[0], dtype=np.float32) + 0.5) * self.step)[:, None]

    def pixels(self, points: Array) -> Array:
        """Millimetres [..., 2] to cell coordinates (cell centres are whole numbers)."""
        return (np.asarray(points) - (self.x0, self.y0)) / self.step - 0.5

    def patch(self, low: Array, high: Array) -> tuple[slice, slice] | None:
        """Rows and columns of the rectangle between two points in millimetres; None outside the canvas."""
        rows, columns = self.tissue.shape
        left, top = np.floor(self.pixels(low)).astype(int)
        right, bottom = np.ceil(self.pixels(high)).astype(int) + 1
        left, right = max(left, 0), min(right, columns)
        top, bottom = max(top, 0), min(bottom, rows)
        return None if left >= right or top >= bottom else (slice(top, bottom), slice(left, right))

    def keep_inside(self, centre: tuple[float, float], sides: tuple[float, float], lean: float) -> tuple[float, float]:
        """The centre of a sensor of these sides, leaning by radians, moved so that it sees nothing but the canvas.

        Beyond the edge anatomy would be mirrored. What is too large for the canvas stands in its middle.
        """
        cos, sin = abs(np.cos(lean)), abs(np.sin(lean))
        canvas_sides = np.array([self.width, self.height])
        half = np.minimum(REACH * np.array([[cos, sin], [sin, cos]]) @ sides, canvas_sides) / 2
        start = np.array([self.x0, self.y0])
        x, y = np.clip(centre, start + half, start + canvas_sides - half)
        return float(x), float(y)

    def matrix_to(self, view: Array) -> Array:
        """[2, 3] from cells to image pixels, for a [2, 3] view from millimetres to image coordinates (pixel edges)."""
        cells = np.array([[self.step, 0, self.x0 + self.step / 2], [0, self.step, self.y0 + self.step / 2], [0, 0, 1]])
        matrix = view @ cells
        matrix[:, 2] -= 0.5  # image coordinates count from the pixel's edge, OpenCV counts from its centre
        return matrix

    def project(self, view: Array, size: tuple[int, int]) -> tuple[Array, Array]:
        """``tissue`` and ``dense`` as an image of ``size`` (height, width) sees them."""
        matrix = self.matrix_to(view)
        # Metal is so opaque that its edge is only smooth if light is averaged, not depth.
        light = cv2.GaussianBlur(cv2.exp(-np.minimum(self.dense, 9)), (0, 0), 0.5)
        light = cv2.warpAffine(light, matrix, size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        tissue = cv2.warpAffine(
            self.tissue, matrix, size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
        return tissue, -cv2.log(light)


@dataclass(frozen=True)
class Column:
    """A body with round or oval cross sections along a bent axis: a root, a crown, a post, a screw.

    Attributes:
        origin: millimetres on the canvas.
        angle: of the axis against +y (towards the apex in the mandible's frame), in radians, turning towards +x.
        along: heights along the axis, increasing.
        half_width: half widths at these heights.
        bend: sideways offsets of the axis at these heights.
        roundness: depth along the ray over width of the cross section.
        cusps: height of two cusps at the upper end, in millimetres.
    """

    origin: tuple[float, float]
    angle: float
    along: Array
    half_width: Array
    bend: Array | None = None
    roundness: float = 1.0
    cusps: float = 0.0

    def thickness(self, canvas: Canvas) -> tuple[tuple[slice, slice], Array] | None:
        """Cells of the bounding box and the path length there; None outside the canvas."""
        bend = np.zeros_like(self.along, dtype=float) if self.bend is None else np.asarray(self.bend)
        axis = np.array([np.sin(self.angle), np.cos(self.angle)])
        side = np.array([axis[1], -axis[0]])
        edges = [np.outer(self.along, axis) + np.outer(bend + sign * self.half_width, side) for sign in (-1, 1)]
        points = np.concatenate(edges) + self.origin
        cells = canvas.patch(points.min(axis=0) - canvas.step, points.max(axis=0) + canvas.step)
        if cells is None:
            return None
        x = canvas.x[:, cells[1]] - np.float32(self.origin[0])
        y = canvas.y[cells[0]] - np.float32(self.origin[1])
        z = x * np.float32(axis[0]) + y * np.float32(axis[1])
        u = x * np.float32(side[0]) + y * np.float32(side[1])
        if self.cusps > 0:
            period = np.float32(2 * np.pi / max(float(np.max(self.half_width)), 0.1))
            fade = (
                np.float32(0.5)
                * (z - np.float32(self.along[-1]))
                * np.float32(self.cusps / (self.along[0] - self.along[-1]))
            )
            z -= fade * (1 + np.cos(u * period))
        steps = np.linspace(self.along[0], self.along[-1], 256)
        scale = 255 / (steps[-1] - steps[0])
        index = np.clip((z - np.float32(steps[0])) * np.float32(scale) + np.float32(0.5), 0, 255).astype(np.int32)
        half = np.interp(steps, self.along, self.half_width).astype(np.float32)[index]
        if self.bend is not None:
            u = u - np.interp(steps, self.along, bend).astype(np.float32)[index]
        path = np.sqrt(np.maximum(half * half - u * u, 0))
        # Ends are shared between cells, so that a crown and a root that meet leave neither a gap nor a line.
        ends = np.minimum(z - np.float32(self.along[0]), np.float32(self.along[-1]) - z) * np.float32(1 / canvas.step)
        ends += np.float32(0.5)
        path *= np.minimum(np.maximum(ends, 0), np.float32(1))
        path *= np.float32(2 * self.roundness)
        return cells, path
