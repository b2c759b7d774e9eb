"""Path length of parallel X-rays through an implant.

The image plane holds u (across the projected axis) and s (along it, 0 at the platform's centre); rays run along depth.
(u, depth, axis) is a right-handed frame. An implant that leans out of the plane by ``tilt`` is foreshortened: the point
z on its axis projects to s = z cos(tilt), and a ray at (u, s) passes the depth y of the solid's own frame at height
z = s / cos(tilt) + y tan(tilt).
"""

from __future__ import annotations

import cv2
import numpy as np

from implantdet.phantom.arrays import Array
from implantdet.phantom.solid import TABLE_ANGLES, TABLE_STEP, Solid

SAMPLES = 16  # per ray across the diameter
SOFTNESS = 0.02  # mm; half width of the transition between inside and outside at a grazing ray


def chord(radius: Array, u: Array) -> Array:
    """Length of the chord at distance u from the centre of a circle; 0 outside."""
    return 2 * np.sqrt(np.maximum(radius * radius - u * u, 0))


def outer_path(solid: Solid, u: Array, s: Array, tilt: float, spin: float, samples: int = SAMPLES) -> Array:
    """Path in millimetres through the implant without its inner cavities.

    Args:
        solid: the implant.
        u: [1, W] or [H, W] millimetres across the projected axis.
        s: [H, 1] or [H, W] millimetres along it.
        tilt: lean out of the image plane, in radians.
        spin: turn of the implant about its axis, in radians.
        samples: points per ray.

    Returns:
        [H, W].
    """
    shape = np.broadcast_shapes(u.shape, s.shape)
    reach = solid.max_radius * 1.001
    step = 2 * reach / samples
    axial = s * np.float32(1 / (np.cos(tilt) * TABLE_STEP))
    slope = float(np.tan(tilt) / TABLE_STEP)
    total, row, column = (np.zeros(shape, np.float32) for _ in range(3))
    for y in (np.arange(samples) + 0.5) * step - reach:
        row[:] = axial + np.float32(y * slope)
        rho, angle = cv2.cartToPolar(u, np.full_like(u, y))  # angles from 0 to 2π
        angle += np.float32(-spin % (2 * np.pi))  # the table holds two turns
        column[:] = angle * np.float32(TABLE_ANGLES / (2 * np.pi))
        surface: Array = cv2.remap(
            solid.table, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=-1
        )
        surface -= rho
        # Across one step the distance from the axis changes by step * |y| / rho: inside and outside share the step.
        surface *= 1 / (np.float32(abs(y) * step) / rho + np.float32(2 * SOFTNESS))
        total += _clip(surface, 0.5)
    total += np.float32(samples / 2)
    return total * np.float32(step / np.cos(tilt))


def _clip(values: Array, limit: float) -> Array:
    """Clip to ±limit, in place."""
    return np.maximum(np.minimum(values, np.float32(limit), out=values), np.float32(-limit), out=values)


def cavity_path(solid: Solid, u: Array, s: Array, tilt: float, spin: float, screw: float) -> Array:
    """Path in millimetres through the inner channel and the apical hole.

    Args:
        solid: the implant.
        u: [1, W] or [H, W] millimetres across the projected axis.
        s: [H, 1] or [H, W] millimetres along it.
        tilt: lean out of the image plane, in radians.
        spin: turn of the implant about its axis, in radians; at 0 the apical hole faces the viewer.
        screw: share of the channel's depth that an abutment screw fills, from the top.
    """
    axial = (s * np.float32(1 / np.cos(tilt))).astype(np.float32)
    radius = solid.bore_radius(axial)
    radius = np.where(axial < screw * solid.line.bore[1] * solid.length, 0, radius).astype(np.float32)
    path = chord(radius, u) / np.float32(np.cos(tilt))
    if solid.hole_size[0] > 0:
        path = path + _hole_path(solid, u, axial, spin)
    return path


def _hole_path(solid: Solid, u: Array, axial: Array, spin: float) -> Array:
    """Overlap of the hole's stretch of each ray with the solid's."""
    # The hole is |u cos(spin) + y sin(spin)| < half width; near 0 the whole ray is in it or none of it.
    sine = float(np.sin(spin))
    sine = float(np.copysign(max(abs(sine), 1e-3), sine))
    middle = u * np.float32(-np.cos(spin) / sine)
    half = solid.hole_half_width(axial) / abs(sine)
    inside = chord(solid.envelope(axial).astype(np.float32), u) / 2
    return np.maximum(np.minimum(middle + half, inside) - np.maximum(middle - half, -inside), 0).astype(np.float32)
