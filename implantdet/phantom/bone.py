"""The jaw of a periapical radiograph: ridge, cortical plates, trabecular web, gum, sinus, canal, lamina dura.

The frame of the canvas: y grows towards the apices, the alveolar crest runs near y = 0.
"""

from __future__ import annotations

import cv2
import numpy as np

from implantdet.phantom.arrays import Array
from implantdet.phantom.canvas import MU, Canvas
from implantdet.phantom.noise import smooth_noise, trabeculae


def wave(rng: np.random.Generator, x: Array, period: float, height: float) -> Array:
    """A smooth random curve over x: standard deviation ``height``, grain ``period`` millimetres."""
    knots = np.arange(float(x.min()) - 2 * period, float(x.max()) + 3 * period, period)
    values = rng.standard_normal(len(knots)) * height * 1.25
    position = (x - knots[0]) / period
    index = position.astype(int)
    part = position - index
    part = part * part * (3 - 2 * part)
    return (values[index] * (1 - part) + values[index + 1] * part).astype(np.float32)


def bump(value: Array, width: float) -> Array:
    """Gaussian of this standard deviation, 1 at 0."""
    part = np.square(value, dtype=np.float32)
    part *= np.float32(-0.5 / width**2)
    return np.exp(part, out=part)


def rise(value: Array, width: float) -> Array:
    """Smooth step from 0 to 1 over ``width`` after 0."""
    part = np.multiply(value, np.float32(1 / width), dtype=np.float32)
    np.minimum(part, np.float32(1), out=part)
    np.maximum(part, np.float32(0), out=part)
    smooth = np.multiply(part, np.float32(-2))
    smooth += np.float32(3)
    part *= part
    part *= smooth
    return part


def draw_jaw(canvas: Canvas, rng: np.random.Generator, upper: bool, crest: Array) -> None:
    """Add soft tissue, bone and its landmarks, and record the amount of bone.

    Args:
        canvas: receives the optical depth.
        rng: source of randomness.
        upper: maxilla, with finer meshes, thinner plates and a sinus.
        crest: [1, columns] height of the alveolar crest.
    """
    depth = canvas.y - crest
    amount = rise(depth, rng.uniform(5, 9)) * 0.55 + rise(depth, 1.6) * 0.45
    plates = rng.uniform(1.4, 2.2) if upper else rng.uniform(2.0, 3.2)
    spongy = rng.uniform(6, 9)
    web = trabeculae(
        rng,
        canvas.tissue.shape,
        rng.uniform(0.42, 0.85) / canvas.step,
        rng.uniform(0.9, 1.15) if upper else rng.uniform(1.1, 1.6),
    )
    strength = rng.uniform(0.06, 0.19)
    uneven = 1 + 0.12 * smooth_noise(rng, canvas.tissue.shape, (7 / canvas.step, 7 / canvas.step))
    bone = (
        amount * (plates * MU["cortical"] + spongy * MU["trabecular"] * uneven)
        + strength * amount * (0.35 + 0.65 * amount) * web
    )
    bone += rng.uniform(0.05, 0.2) * bump(depth - 0.3, 0.3)  # the crest's own cortical line
    (_draw_sinus if upper else _draw_canal)(canvas, rng, bone)
    gum = rise(depth + rng.uniform(2, 4), 1.2)
    soft = MU["soft"] * (rng.uniform(2, 6) + rng.uniform(4, 9) * gum)
    canvas.tissue += bone.astype(np.float32) + soft.astype(np.float32)
    if rng.random() < 0.3:  # the cheek's or the lip's edge crosses the open space
        canvas.tissue += np.float32(rng.uniform(0.04, 0.12)) * rise(wave(rng, canvas.x, 12, 3) - 6 + canvas.y, 2)
    canvas.bone = amount.astype(np.float32)


def _draw_sinus(canvas: Canvas, rng: np.random.Generator, bone: Array) -> None:
    """Thin the bone above the sinus floor and draw the floor, in place; sometimes the zygomatic process too."""
    if rng.random() < 0.75:
        floor = rng.uniform(9, 22) + wave(rng, canvas.x, rng.uniform(8, 16), rng.uniform(1, 3.5))
        beyond = canvas.y - floor
        bone *= 1 - rng.uniform(0.35, 0.65) * rise(beyond, 1.0)
        bone += rng.uniform(0.12, 0.3) * bump(beyond, rng.uniform(0.2, 0.4))
        if rng.random() < 0.4:  # a septum
            x = rng.uniform(canvas.x0, canvas.x0 + canvas.width)
            bone += 0.15 * bump(canvas.x - x - 0.15 * canvas.y, 0.3) * rise(beyond, 1.0)
    if rng.random() < 0.25:  # the zygomatic process: a bright U
        x, y = rng.uniform(canvas.x0, canvas.x0 + canvas.width), rng.uniform(9, 16)
        radius = rng.uniform(4, 7)
        ring = np.hypot(canvas.x - x, np.minimum(canvas.y - y - radius, 0)) - radius
        bone += rng.uniform(0.15, 0.35) * bump(ring, 0.7) + rng.uniform(0.1, 0.3) * rise(-ring, 2) * rise(
            canvas.y - y, 6
        )


def _draw_canal(canvas: Canvas, rng: np.random.Generator, bone: Array) -> None:
    """Draw the mandibular canal and the lower border, in place."""
    if rng.random() < 0.6:
        middle = rng.uniform(14, 20) + wave(rng, canvas.x, 20, 1.2)
        away = np.abs(canvas.y - middle)
        half = rng.uniform(1.0, 1.6)
        bone -= rng.uniform(0.08, 0.18) * rise(half + 0.5 - away, 0.7)
        bone += rng.uniform(0.04, 0.14) * bump(away - half - 0.3, 0.25)
    if rng.random() < 0.5:
        border = rng.uniform(23, 30) + wave(rng, canvas.x, 25, 1.0)
        bone += rng.uniform(0.2, 0.5) * bump(canvas.y - border, 1.3)
        bone *= 1 - 0.9 * rise(canvas.y - border - 1.5, 1.0)
    if rng.random() < 0.25:  # the mental foramen
        x, y = rng.uniform(canvas.x0 + 8, canvas.x0 + canvas.width - 8), rng.uniform(11, 17)
        bone -= rng.uniform(0.1, 0.2) * rise(1.7 - np.hypot(canvas.x - x, canvas.y - y), 0.8)


def draw_lamina(canvas: Canvas, roots: Array, strength: float) -> None:
    """Draw the dark periodontal gap and the bright lamina dura around roots, in place."""
    mask = roots.astype(np.uint8)
    gap = max(1, round(0.22 / canvas.step))
    wall = max(1, round(0.35 / canvas.step))
    near = cv2.dilate(mask, _disc(gap))
    far = cv2.dilate(mask, _disc(gap + wall))
    edge = cv2.GaussianBlur((near - mask).astype(np.float32), (0, 0), 0.6 * gap + 0.3)
    line = cv2.GaussianBlur((far - near).astype(np.float32), (0, 0), 0.4 * wall + 0.3)
    canvas.tissue += np.float32(strength) * canvas.bone * (line - edge)


def _disc(radius: int) -> Array:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
