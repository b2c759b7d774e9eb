"""Bright things that are no implants: root-canal fillings, posts, fillings, screws, film holders."""

from __future__ import annotations

import numpy as np

from implantdet.phantom.arrays import Array
from implantdet.phantom.canvas import MU, Canvas, Column
from implantdet.phantom.restorations import add_column, add_polygon, cover_tooth
from implantdet.phantom.teeth import Tooth


def draw_treated_tooth(canvas: Canvas, tooth: Tooth, rng: np.random.Generator) -> Array:
    """A tooth, perhaps with a root-canal filling, a post, a filling or a crown. Returns the cells of its roots."""
    luck = rng.random()
    if luck < 0.22:
        crowned = rng.random() < 0.6
        roots = tooth.draw(canvas, rng, treated=True, bare=crowned)
        if rng.random() < 0.5:
            _post(canvas, tooth, rng)
        if crowned:
            cover_tooth(canvas, tooth, rng)
        return roots
    crowned = luck < 0.32
    roots = tooth.draw(canvas, rng, bare=crowned)
    if crowned:
        cover_tooth(canvas, tooth, rng)
    elif luck < 0.52:
        _filling(canvas, tooth, rng)
    return roots


def _post(canvas: Canvas, tooth: Tooth, rng: np.random.Generator) -> None:
    """A metal post, smooth or threaded: the hardest thing to tell from an implant."""
    length, radius = tooth.root * rng.uniform(0.4, 0.7), rng.uniform(0.45, 0.95)
    along = np.linspace(-tooth.crown * rng.uniform(0.2, 0.6), length, 60)
    half = radius * (1 - 0.35 * np.clip(along / length, 0, 1))
    if rng.random() < 0.4:
        half = half * (1 + 0.12 * np.sign(np.sin(along * 2 * np.pi / rng.uniform(0.5, 0.9))))
    side = 0.0 if tooth.roots == 1 else float(rng.choice([-0.24, 0.24])) * tooth.neck_width
    origin = (tooth.neck[0] + side * np.cos(tooth.angle), tooth.neck[1] - side * np.sin(tooth.angle))
    add_column(canvas, Column(origin, tooth.angle, along, half), float(rng.choice([MU["titanium"], MU["alloy"]])))
    core = np.array([-tooth.crown * 0.6, -tooth.crown * 0.2, 0.5])
    add_column(
        canvas,
        Column(tooth.neck, tooth.angle, core, tooth.neck_width * np.array([0.25, 0.3, 0.2])),
        MU["amalgam"] * 0.5,
    )


def _filling(canvas: Canvas, tooth: Tooth, rng: np.random.Generator) -> None:
    """Amalgam or composite of irregular outline in the crown."""
    axis = np.array([np.sin(tooth.angle), np.cos(tooth.angle)])
    side = np.array([axis[1], -axis[0]])
    centre = (
        np.array(tooth.neck) - axis * tooth.crown * rng.uniform(0.55, 0.8) + side * tooth.width * rng.uniform(-0.3, 0.3)
    )
    turn = np.sort(rng.uniform(0, 2 * np.pi, 9))
    radius = rng.uniform(0.7, 1.6) * rng.uniform(0.7, 1.2, 9)
    points = [
        tuple(centre + side * r * np.cos(t) * 1.3 + axis * r * np.sin(t) * 0.8)
        for t, r in zip(turn, radius, strict=True)
    ]
    add_polygon(canvas, points, float(rng.choice([0.6, 4.0])))


def draw_screw(canvas: Canvas, rng: np.random.Generator, x: float, y: float) -> None:
    """A fixation screw of a bone graft: thin, short, with a wide flat head."""
    length, radius = rng.uniform(5, 9), rng.uniform(0.55, 0.8)
    along = np.linspace(0, length, 80)
    half = radius * (0.85 + 0.15 * np.sin(along * 2 * np.pi / 0.7))
    half[along < 0.7] = 1.6 * radius
    half[along > length - 1] *= np.linspace(1, 0.2, int((along > length - 1).sum()))
    add_column(canvas, Column((x, y), rng.uniform(-0.5, 0.5) + rng.choice([0, np.pi / 2]), along, half), MU["titanium"])


def draw_holder(canvas: Canvas, rng: np.random.Generator, x: float, y: float) -> None:
    """The bite block of a film holder above the crowns, with its ring or its rods."""
    width, height = rng.uniform(12, 24), rng.uniform(5, 9)
    corners = [(-0.5, -1.0), (0.5, -1.0), (0.5, 0.0), (-0.5, 0.0)]
    block = [(x + a * width, y + b * height) for a, b in corners]
    add_polygon(canvas, block, rng.uniform(0.25, 0.6), softness=0.3)
    for side in rng.uniform(-0.45, 0.45, size=int(rng.integers(0, 3))):
        rod = [(x + side * width + a * 1.6, y + b * height * 1.3) for a, b in corners]
        add_polygon(canvas, rod, 3.0)
    if rng.random() < 0.4:
        turn = np.linspace(0, 2 * np.pi, 40)
        radius = rng.uniform(5, 8)
        outer = [(x + radius * np.cos(t), y - height + radius * np.sin(t)) for t in turn]
        inner = [(x + (radius - 1.2) * np.cos(t), y - height + (radius - 1.2) * np.sin(t)) for t in turn[::-1]]
        add_polygon(canvas, outer + inner, 0.8)
