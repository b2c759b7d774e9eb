"""The head in a panoramic: mandible, maxilla, sinuses, nose, palate, spine, airway, condyles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from implantdet.phantom.arrays import Array
from implantdet.phantom.bone import bump, rise, wave
from implantdet.phantom.canvas import Canvas
from implantdet.phantom.noise import smooth_noise, trabeculae


@dataclass(frozen=True)
class Arches:
    """Course of both alveolar crests: y = middle ± gap / 2 - smile · x², millimetres, y downwards.

    Attributes:
        middle: height of the bite at the midline.
        gap: distance of the two crests at the midline; crowns stand in it.
        smile: curvature of the bite; positive lifts the ends.
        depth: from the lower crest to the lower border of the mandible at the midline.
    """

    middle: float
    gap: float
    smile: float
    depth: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Arches:
        """Natural variation, frowns included."""
        return cls(
            float(rng.uniform(-4, 4)),
            float(rng.uniform(17, 21)),
            float(rng.uniform(0.0008, 0.0045)),
            float(rng.uniform(27, 34)),
        )

    def bite(self, x: Array | float) -> Array | float:
        """Height between the crests at x."""
        return self.middle - self.smile * x * x

    def crest(self, upper: bool, x: Array | float) -> Array | float:
        """Height of the crest at x."""
        side = -0.5 if upper else 0.5
        return self.bite(x) + side * self.gap * (1 - 0.000025 * x * x)

    def site(self, upper: bool, x: float) -> tuple[tuple[float, float], float]:
        """Point of the crest, and the direction of a tooth there (see ``Column.angle``)."""
        slope = float(self.crest(upper, x + 0.5) - self.crest(upper, x - 0.5))
        # Teeth stand between upright and normal to the bite.
        lean = -0.4 * float(np.arctan(slope))
        return (x, float(self.crest(upper, x))), (np.pi + lean if upper else lean)

    def bone_depth(self, canvas: Canvas, points: list[tuple[float, float]]) -> float:
        """Median optical depth of the bone some millimetres below the points on the crest."""
        samples = []
        for x, y in points:
            down = 5.0 if y > self.bite(x) else -5.0
            for across in (-4.5, 4.5):
                column, row = np.round(canvas.pixels(np.array([x + across, y + down]))).astype(int)
                samples.append(
                    canvas.tissue[
                        np.clip(row, 0, canvas.tissue.shape[0] - 1), np.clip(column, 0, canvas.tissue.shape[1] - 1)
                    ]
                )
        return float(np.median(samples)) if samples else 0.8


def draw_head(canvas: Canvas, rng: np.random.Generator, arches: Arches) -> None:
    """Add everything but teeth, and record the amount of bone."""
    x, y = canvas.x, canvas.y
    web = trabeculae(rng, canvas.tissue.shape, rng.uniform(0.7, 1.2) / canvas.step, 1.3)
    clouds = smooth_noise(rng, canvas.tissue.shape, (14 / canvas.step, 14 / canvas.step))
    lower = _mandible(canvas, rng, arches)
    upper_depth = arches.crest(True, x) - y + wave(rng, x, 10, 0.5)
    maxilla = rise(upper_depth, 3.0) * rise(78 - np.abs(x), 14)
    amount = np.maximum(lower, maxilla * (1 - 0.8 * rise(upper_depth - 16, 16))).astype(np.float32)

    depth = rng.uniform(0.15, 0.3) + rng.uniform(0.15, 0.35) * rise(104 - np.abs(x) + 0.1 * y, 14) * np.ones_like(y)
    depth = depth + 0.42 * amount * (1 + 0.14 * clouds) + rng.uniform(0.02, 0.06) * amount * web
    depth += 0.18 * bump(upper_depth - 0.4, 0.5) * rise(75 - np.abs(x), 6)
    depth = _midface(canvas, rng, arches, depth, upper_depth)
    depth = _soft_shadows(canvas, rng, arches, depth)
    # The beam passes the spine in the middle of the sweep; machines correct for it more or less.
    depth += rng.uniform(0.05, 0.4) * bump(x, rng.uniform(10, 17)) * (0.7 + 0.3 * rise(y + 10, 40))
    canvas.tissue += np.maximum(depth, 0.02).astype(np.float32)
    canvas.bone = amount


def _mandible(canvas: Canvas, rng: np.random.Generator, arches: Arches) -> Array:
    """Body and rami, with their borders; returns the amount of bone."""
    x, y = canvas.x, canvas.y
    side = np.abs(x)
    border = (
        arches.crest(False, x) + arches.depth + 5 + 4 * bump(x, 14) - 3 * rise(side - 35, 30) + wave(rng, x, 25, 0.7)
    )
    crest = arches.crest(False, x) + wave(rng, x, 11, 0.5)
    front = 70 - 0.25 * (y - arches.middle) + rng.uniform(-3, 3)  # anterior edge of the ramus
    back = 94 + 0.16 * (arches.middle - y) + rng.uniform(-2, 2)
    top = arches.middle - rng.uniform(34, 40) + 9 * bump(side - 80, 5)  # the notch between the processes
    # Distance to the outer border, rounded where the lower and the posterior border meet at the jaw angle.
    outer = -9 * np.logaddexp((y - border) / 9, (side - back) / 9)
    body = rise(y - crest, 3.0) * rise(92 - side, 8)
    ramus = rise(side - front, 9) * rise(y - top, 4)
    bone = np.maximum(body, 0.85 * ramus) * rise(outer, 2.0)
    line = rng.uniform(0.3, 0.6) * bump(outer - 1.3, 0.9) * rise(y - top, 5)
    line += 0.14 * bump(y - crest - 0.4, 0.5) * rise(68 - side, 4)
    line += (
        0.2 * bump(side - front - 2, 1.0) * rise(y - top, 5) * rise(arches.crest(False, x) + 10 - y, 6)
    )  # oblique line
    canal = arches.crest(False, x) + 15 + wave(rng, x, 25, 1.0) - 0.012 * np.square(np.maximum(side - 35, 0))
    tube = rise(1.9 - np.abs(y - canal), 1.0) * rise(side - 24, 4) * rise(86 - side, 6)
    walls = bump(np.abs(y - canal) - 2.0, 0.35) * rise(side - 24, 4) * rise(86 - side, 6)
    canvas.tissue += (line - 0.12 * tube + 0.07 * walls).astype(np.float32)
    return bone


def _midface(canvas: Canvas, rng: np.random.Generator, arches: Arches, depth: Array, upper_depth: Array) -> Array:
    """Sinuses, nose, hard palate, zygoma."""
    x, y = canvas.x, canvas.y
    side = np.abs(x)
    for sign in (-1, 1):
        floor = rng.uniform(7, 13) + wave(rng, x, 9, 1.2) + 0.012 * np.square(sign * x - 42)
        inside = rise(upper_depth - floor, 1.5) * rise(sign * x - 14, 4) * rise(68 - sign * x, 6)
        depth = depth - rng.uniform(0.16, 0.26) * inside
        depth += 0.2 * bump(upper_depth - floor, 0.45) * rise(sign * x - 16, 4) * rise(66 - sign * x, 5)
    palate = arches.middle - arches.gap / 2 - rng.uniform(19, 24) + 0.0012 * x * x
    depth += rng.uniform(0.15, 0.4) * bump(y - palate, rng.uniform(0.8, 1.8)) * rise(70 - side, 25)
    nose = rise(palate - 1 - y, 2) * rise(16 - side, 3)
    depth -= 0.2 * nose
    depth += 0.25 * bump(x - 0.6, 0.9) * rise(palate - y, 3) + 0.16 * bump(side - 8, 3) * nose  # septum, turbinates
    zygoma = palate - 2 - 0.15 * (side - 60)
    depth += rng.uniform(0.12, 0.3) * bump(y - zygoma, 2.0) * rise(side - 48, 8) * rise(100 - side, 10)
    return depth


def _soft_shadows(canvas: Canvas, rng: np.random.Generator, arches: Arches, depth: Array) -> Array:
    """Air between the lips and over the tongue, the airway, hyoid, ghost of the other ramus."""
    x, y = canvas.x, canvas.y
    side = np.abs(x)
    bite = arches.bite(x)
    if rng.random() < 0.6:
        depth = depth - rng.uniform(0.05, 0.14) * bump(y - bite, rng.uniform(2, 5)) * rise(60 - side, 25)
    air = arches.middle - 16 + 0.004 * np.square(x) + rng.uniform(-3, 3)
    depth = depth - rng.uniform(0.0, 0.16) * bump(y - air, rng.uniform(2, 4)) * rise(85 - side, 15)  # above the tongue
    throat = side - 72 - 0.35 * (y - arches.middle)
    depth = depth - rng.uniform(0.05, 0.15) * bump(throat, 5) * rise(y - arches.middle + 25, 20)
    hyoid = arches.crest(False, x) + arches.depth + rng.uniform(7, 13) - 0.15 * (side - 70)
    depth += 0.22 * bump(y - hyoid, 1.8) * rise(side - 52, 5) * rise(90 - side, 5)
    ghost = 0.14 * rng.random() * rise(side - 35, 30) * rise(95 - side, 20)
    return depth + ghost * bump(y - arches.middle - 5, 25)
