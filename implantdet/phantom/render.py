"""A radiograph of a patient: the shadows of the implants over the canvas, exposed and framed."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from implantdet.phantom.arrays import Array
from implantdet.phantom.canvas import MU, Canvas
from implantdet.phantom.projection import cavity_path, outer_path
from implantdet.phantom.scene import Patient, PlacedImplant, View
from implantdet.phantom.xray import expose

SILHOUETTE = 0.12  # mm of path that count as the implant's shadow
DENSE = 1.0  # optical depth of metal that hides what lies behind it


@dataclass(frozen=True)
class Shadow:
    """The projection of one implant into the image, on a patch that may reach beyond it.

    Attributes:
        implant: as seen in this view.
        left, top: image pixel of the patch's first column and row; may be negative.
        path: [h, w] millimetres of metal.
        mask: [h, w] bool, pixels that are at least half covered.
        height: [h, w] position along the axis, 0 at the platform and 1 at the apex.
    """

    implant: PlacedImplant
    left: int
    top: int
    path: Array
    mask: Array
    height: Array

    def window(self, size: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where the patch lies in an image of this size: slices of the image, slices of the patch."""
        rows, columns = self.mask.shape
        top, left = max(self.top, 0), max(self.left, 0)
        bottom, right = max(min(self.top + rows, size[0]), top), max(min(self.left + columns, size[1]), left)
        image = slice(top, bottom), slice(left, right)
        return image, (slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left))


@dataclass(frozen=True)
class Radiograph:
    """A rendered image and what is known about it.

    Attributes:
        image: [H, W] uint8.
        shadows: of all implants, also of those beyond the frame.
        hidden: [H, W] bool, pixels where crowns and other dense bodies hide what lies behind.
        inside: [H, W] bool, pixels of the sensor.
    """

    image: Array
    shadows: tuple[Shadow, ...]
    hidden: Array
    inside: Array


def cast(implant: PlacedImplant, view: View) -> Shadow:
    """Project one implant. The patch is computed in the implant's own frame and then warped into the image."""
    solid, matrix = implant.solid, view.matrix
    axis = implant.axis
    side = np.array([-axis[1], axis[0]])  # (side, depth, axis) is right-handed when y points down
    step = min(view.scale) / 2
    margin = solid.max_radius * abs(np.sin(implant.tilt)) + 3 * step
    across, length = solid.max_radius + 3 * step, solid.length * np.cos(implant.tilt)
    u = np.arange(-across, across + step, step, dtype=np.float32)[None]
    s = np.arange(-margin, length + margin + step, step, dtype=np.float32)[:, None]
    outer = outer_path(solid, u, s, implant.tilt, implant.spin)
    cover = np.clip((outer - np.float32(SILHOUETTE)) * np.float32(1 / SILHOUETTE) + np.float32(0.5), 0, 1)
    path = np.maximum(outer - cavity_path(solid, u, s, implant.tilt, implant.spin, implant.screw), 0)

    # grid (column, row) → millimetres → image
    local = np.array([[*(side * step)], [*(axis * step)]]).T
    start = np.array([implant.x, implant.y]) + u[0, 0] * side + s[0, 0] * axis
    linear = matrix[:, :2] @ local
    shift = matrix[:, :2] @ start + matrix[:, 2]
    corners = np.array([[0, 0], [u.size - 1, 0], [0, s.size - 1], [u.size - 1, s.size - 1]]) @ linear.T + shift
    left, top = np.floor(corners.min(axis=0)).astype(int) - 1
    right, bottom = np.ceil(corners.max(axis=0)).astype(int) + 1
    fine = 2 * np.column_stack([linear, shift - (left, top)])
    fine[:, 2] -= 0.5
    size = (2 * (right - left), 2 * (bottom - top))

    def warp(values: Array) -> Array:
        return cv2.resize(
            cv2.warpAffine(values, fine, size), (right - left, bottom - top), interpolation=cv2.INTER_AREA
        )

    inverse = np.linalg.inv(matrix[:, :2])
    x = np.arange(left, right, dtype=np.float32)[None] + np.float32(0.5)
    y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5)
    along = axis @ inverse
    offset = along @ matrix[:, 2] + axis @ (implant.x, implant.y)
    height = (x * np.float32(along[0]) + y * np.float32(along[1]) - np.float32(offset)) * np.float32(1 / length)
    return Shadow(implant, int(left), int(top), warp(path), warp(cover) >= 0.5, height)


def render(patient: Patient, view: View, rng: np.random.Generator) -> Radiograph:
    """Take one radiograph.

    Args:
        patient: anatomy and implants.
        view: direction, frame and exposure.
        rng: source of the noise.
    """
    canvas: Canvas = patient.canvas
    tissue, dense = canvas.project(view.matrix, view.size)
    depth = tissue + dense
    shadows = tuple(cast(implant.leaning(view.tilt, view.spin), view) for implant in patient.implants)
    for shadow in shadows:
        image, patch = shadow.window(view.size)
        depth[image] += np.float32(MU["titanium"]) * shadow.path[patch]
    diameter = float(np.mean([shadow.implant.solid.diameter for shadow in shadows])) if shadows else 4.0
    grey = expose(depth, view.exposure, rng, patient.bone_depth, patient.bone_depth + MU["titanium"] * 0.72 * diameter)
    distance = view.frame.distance(view.size)
    grey = view.frame.apply(grey, distance)
    image8 = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return Radiograph(image8, shadows, dense > DENSE, distance > 0)
