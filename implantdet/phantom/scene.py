"""What a scene is made of: a patient with placed implants, and the view that one radiograph takes of them.

Two frames: millimetres of the jaw (x along the arch, y down the canvas), and image coordinates in pixels, counted from
the upper left edge of the upper left pixel. A [2, 3] matrix leads from the first to the second.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from implantdet.phantom.arrays import Array
from implantdet.phantom.canvas import Canvas
from implantdet.phantom.frame import Frame
from implantdet.phantom.solid import Solid
from implantdet.phantom.xray import Exposure


@dataclass(frozen=True)
class PlacedImplant:
    """An implant in the jaw.

    Attributes:
        solid: its shape.
        x, y: millimetres of the platform's centre.
        angle: direction of the axis towards the apex, against +y, in radians, turning towards +x.
        tilt: lean out of the image plane, in radians.
        spin: turn about the axis, in radians; at 0 the apical hole faces the viewer.
        screw: share of the inner channel that a screw fills.
    """

    solid: Solid
    x: float
    y: float
    angle: float
    tilt: float
    spin: float
    screw: float

    @property
    def axis(self) -> Array:
        """Unit vector from platform to apex in the canvas."""
        return np.array([np.sin(self.angle), np.cos(self.angle)])

    def at(self, z: float, across: float = 0.0) -> tuple[float, float]:
        """Millimetres of the point at height z of the axis (negative: above the platform), moved sideways."""
        axis = self.axis
        point = np.array([self.x, self.y]) + z * axis + across * np.array([axis[1], -axis[0]])
        return float(point[0]), float(point[1])

    def leaning(self, tilt: float, spin: float) -> PlacedImplant:
        """The same implant seen from a slightly different direction."""
        return replace(self, tilt=self.tilt + tilt, spin=self.spin + spin)


@dataclass(frozen=True)
class Patient:
    """One anatomy with its implants, seen in several radiographs.

    Attributes:
        modality: ``periapical`` or ``panoramic``.
        canvas: optical depth of everything but the implants.
        implants: in the canvas.
        upper: the crest looks down in the image (apices up); panoramics show both jaws and keep False.
        bone_depth: typical optical depth of the bone around the implants.
    """

    modality: str
    canvas: Canvas
    implants: tuple[PlacedImplant, ...]
    upper: bool
    bone_depth: float


@dataclass(frozen=True)
class View:
    """One radiograph of a patient.

    Attributes:
        matrix: [2, 3] from millimetres to image coordinates.
        size: height and width in pixels.
        frame: edge of the sensor in the image.
        exposure: settings of the shot.
        tilt, spin: how the direction differs from the patient's reference, in radians.
        quality: of the JPEG file, 1 to 100.
    """

    matrix: Array
    size: tuple[int, int]
    frame: Frame
    exposure: Exposure
    tilt: float
    spin: float
    quality: int

    @property
    def scale(self) -> tuple[float, float]:
        """Millimetres per pixel along the sensor's two sides (of the smaller and the larger stretch)."""
        stretch = np.linalg.svd(self.matrix[:, :2], compute_uv=False)
        return float(1 / stretch[0]), float(1 / stretch[1])

    def project(self, point: tuple[float, float]) -> tuple[float, float]:
        """Millimetres to image coordinates."""
        x, y = self.matrix[:, :2] @ np.asarray(point) + self.matrix[:, 2]
        return float(x), float(y)


def view_matrix(
    centre: tuple[float, float], mm: tuple[float, float], lean: float, turn: float, upper: bool, size: tuple[int, int]
) -> Array:
    """Matrix from millimetres to image coordinates.

    Args:
        centre: millimetres of the point in the middle of the image.
        mm: millimetres per pixel along the sensor's width and height, before the copy is turned.
        lean: turn of the jaw on the sensor, in radians.
        turn: turn of the sensor in the image, in radians.
        upper: half a turn of the canvas (not a mirror image, which would make left-hand threads).
        size: height and width of the image in pixels.
    """
    jaw = _rotation(lean + (np.pi if upper else 0.0))
    linear = _rotation(turn) @ np.diag([1 / mm[0], 1 / mm[1]]) @ jaw
    shift = np.array([size[1] / 2, size[0] / 2]) - linear @ np.asarray(centre)
    return np.column_stack([linear, shift])


def _rotation(angle: float) -> Array:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
