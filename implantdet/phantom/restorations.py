"""What stands on implants: crowns, splints, cantilevers, abutments, healing caps, impression copings, bars."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np

from implantdet.phantom.arrays import Array
from implantdet.phantom.canvas import MU, Canvas, Column
from implantdet.phantom.scene import PlacedImplant
from implantdet.phantom.teeth import Tooth

SINGLE = ("crown", "abutment", "healing_cap", "coping", "ball", "cover")
SINGLE_SHARES = (0.5, 0.1, 0.14, 0.06, 0.03, 0.17)


def add_column(canvas: Canvas, column: Column, mu: float) -> None:
    """Add a dense body of this attenuation."""
    if (found := column.thickness(canvas)) is not None:
        canvas.dense[found[0]] += found[1] * np.float32(mu)


def add_polygon(canvas: Canvas, points: Sequence[tuple[float, float]], depth: float, softness: float = 0.15) -> None:
    """Add a dense plate of this optical depth; its edge is ``softness`` millimetres wide."""
    corners = np.asarray(points, float)
    cells = canvas.patch(corners.min(axis=0) - 4 * softness, corners.max(axis=0) + 4 * softness)
    if cells is None:
        return
    mask = np.zeros(canvas.dense[cells].shape, np.float32)
    local = canvas.pixels(corners) - (cells[1].start, cells[0].start)
    cv2.fillPoly(mask, [np.round(local * 16).astype(np.int32)], depth, cv2.LINE_8, 4)
    canvas.dense[cells] += cv2.GaussianBlur(mask, (0, 0), max(softness / canvas.step, 0.3))


def restore(canvas: Canvas, implants: Sequence[PlacedImplant], rng: np.random.Generator) -> list[float]:
    """Restore neighbouring implants, together or one by one.

    Returns:
        How far a screw fills each implant's inner channel, 0 to 1.
    """
    if len(implants) > 1 and rng.random() < 0.45:
        if rng.random() < 0.2:
            return _bar(canvas, implants, rng)
        widths = [_crown_width(implant, rng) for implant in implants]
        return _splint(canvas, implants, widths, rng)
    kind = str(rng.choice(SINGLE, p=SINGLE_SHARES))
    # One stage of treatment per patient, with an exception now and then.
    return [
        _single(canvas, implant, kind if rng.random() < 0.8 else str(rng.choice(SINGLE)), rng) for implant in implants
    ]


def _single(canvas: Canvas, implant: PlacedImplant, kind: str, rng: np.random.Generator) -> float:
    radius = _platform(implant)
    if kind == "cover":
        add_column(
            canvas, _column(implant, [-0.5, -0.4, 0.3], [0.7 * radius, 0.95 * radius, 0.95 * radius]), MU["titanium"]
        )
        return float(rng.uniform(0.2, 0.5))
    if kind == "healing_cap":
        top, flare = rng.uniform(2, 5.5), rng.uniform(1.0, 1.45)
        along = [-top, -top + 0.3, -0.5 * top, 0]
        add_column(
            canvas,
            _column(implant, along, [0.8 * flare * radius, flare * radius, flare * radius, 0.9 * radius]),
            MU["titanium"],
        )
        return float(rng.uniform(0.4, 0.8))
    if kind == "coping":
        top = rng.uniform(8, 13)
        along = [-top, -0.75 * top, -0.74 * top, -0.5 * top, -0.49 * top, -0.25 * top, 0]
        half = radius * np.array([0.7, 0.7, 1.15, 1.15, 0.75, 1.2, 1.0])
        add_column(canvas, _column(implant, along, half), MU["titanium"])
        return float(rng.uniform(0.6, 0.95))
    top = float(rng.uniform(3.5, 6))
    _abutment(canvas, implant, top)
    if kind == "ball":
        z = np.linspace(-1.1, 1.1, 25)
        ball = Column(implant.at(-top - 0.8), implant.angle, z, np.sqrt(np.maximum(1.21 - z * z, 0.01)))
        add_column(canvas, ball, MU["titanium"])
    if kind == "crown":
        _crown(canvas, implant, _crown_width(implant, rng), rng)
    return float(rng.uniform(0.6, 1.0))


def _platform(implant: PlacedImplant) -> float:
    solid = implant.solid
    return float(solid.envelope(np.zeros(1))[0]) * solid.line.platform


def _column(implant: PlacedImplant, along: Sequence[float], half: Sequence[float] | Array) -> Column:
    return Column((implant.x, implant.y), implant.angle, np.asarray(along, float), np.asarray(half, float))


def _abutment(canvas: Canvas, implant: PlacedImplant, top: float) -> None:
    radius = _platform(implant)
    add_column(
        canvas,
        _column(implant, [-top, -1.2, -0.6, 0], [0.55 * radius, 0.8 * radius, 0.95 * radius, 0.92 * radius]),
        MU["titanium"],
    )


def _crown_width(implant: PlacedImplant, rng: np.random.Generator) -> float:
    return float(np.clip(rng.normal(2.05, 0.25) * implant.solid.diameter, 6, 11.5))


def _tooth_over(
    point: tuple[float, float], angle: float, width: float, height: float, rng: np.random.Generator
) -> Tooth:
    return Tooth(point, angle, width, height, 10.0, 1, width > 8.5, float(rng.uniform(0, 0.4)), 0.8)


def _crown(canvas: Canvas, implant: PlacedImplant, width: float, rng: np.random.Generator, material: str = "") -> None:
    """A crown of metal, of metal under ceramic, or of zirconia, with its margin in the gum."""
    gum = float(rng.uniform(0.6, 2.2))
    tooth = _tooth_over(implant.at(-gum), implant.angle, width, float(rng.uniform(7, 10)), rng)
    cover_tooth(canvas, tooth, rng, material)
    radius = _platform(implant)
    emergence = _column(implant, [-gum - 0.6, -gum, 0], [0.5 * tooth.neck_width, 0.46 * tooth.neck_width, radius])
    add_column(canvas, emergence, MU["titanium"] * 0.8)


def cover_tooth(canvas: Canvas, tooth: Tooth, rng: np.random.Generator, material: str = "") -> None:
    """A crown in the shape of a tooth's own."""
    material = material or str(rng.choice(["alloy", "veneered", "zirconia"], p=[0.3, 0.5, 0.2]))
    if material == "veneered":
        add_column(canvas, tooth.crown_outline(), MU["ceramic"] * 0.5)
        add_column(canvas, tooth.crown_outline(inset=float(rng.uniform(0.6, 1.2))), MU["alloy"])
    else:
        add_column(canvas, tooth.crown_outline(), MU["alloy"] if material == "alloy" else 1.3)


def _splint(
    canvas: Canvas, implants: Sequence[PlacedImplant], widths: Sequence[float], rng: np.random.Generator
) -> list[float]:
    material = str(rng.choice(["alloy", "veneered", "zirconia"], p=[0.35, 0.5, 0.15]))
    centres = []
    for implant, width in zip(implants, widths, strict=True):
        _abutment(canvas, implant, rng.uniform(3.5, 5.5))
        _crown(canvas, implant, width, rng, material)
        centres.append(implant.at(-4.5))
    if rng.random() < 0.35:  # a cantilever on one side
        end, inner = (-1, -2) if rng.random() < 0.5 else (0, 1)
        step = np.subtract(centres[end], centres[inner])
        step = step / np.linalg.norm(step) * (widths[end] / 2 + 3.8)
        point = implants[end].at(-1.8)
        pontic = _tooth_over((point[0] + float(step[0]), point[1] + float(step[1])), implants[end].angle, 7.0, 7.5, rng)
        cover_tooth(canvas, pontic, rng, material)
        centres.append((centres[end][0] + float(step[0]), centres[end][1] + float(step[1])))
    # Connectors, and pontics where implants stand far apart.
    centres.sort()
    for left, right in pairwise(centres):
        gap = right[0] - left[0]
        if gap > 13:
            for part in np.linspace(0, 1, round(gap / 8) + 1)[1:-1]:
                point = (left[0] + part * gap, left[1] + part * (right[1] - left[1]) + 2.5)
                cover_tooth(canvas, _tooth_over(point, 0.0, 7.5, 7.5, rng), rng, material)
        _beam(canvas, left, right, 1.25, 4.0)
    return [float(rng.uniform(0.6, 1.0)) for _ in implants]


def _beam(canvas: Canvas, left: tuple[float, float], right: tuple[float, float], half: float, depth: float) -> None:
    corners = [
        (left[0], left[1] - half),
        (right[0], right[1] - half),
        (right[0], right[1] + half),
        (left[0], left[1] + half),
    ]
    add_polygon(canvas, corners, depth)


def _bar(canvas: Canvas, implants: Sequence[PlacedImplant], rng: np.random.Generator) -> list[float]:
    height = float(rng.uniform(3, 5))
    half = float(rng.uniform(0.9, 1.4))
    tops = sorted(implant.at(-height) for implant in implants)
    for implant in implants:
        _abutment(canvas, implant, height + half)
    for left, right in pairwise(tops):
        _beam(canvas, left, right, half, 3.0)
    return [float(rng.uniform(0.6, 1.0)) for _ in implants]
