"""Panoramic scenes: both jaws, teeth, implants, sinuses, spine, palate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from implantdet.phantom.bone import draw_lamina
from implantdet.phantom.canvas import Canvas
from implantdet.phantom.distractors import draw_screw, draw_treated_tooth
from implantdet.phantom.frame import REACH, Frame
from implantdet.phantom.lines import ProductLine
from implantdet.phantom.panoramic_bone import Arches, draw_head
from implantdet.phantom.periapical import sample_solid
from implantdet.phantom.restorations import restore
from implantdet.phantom.scene import Patient, PlacedImplant, View, view_matrix
from implantdet.phantom.solid import Solid
from implantdet.phantom.teeth import LOWER, UPPER, Tooth
from implantdet.phantom.xray import Exposure

WIDTH, HEIGHT, STEP = 230.0, 118.0, 0.18  # of the canvas, mm at the level of the jaws
COUNTS = np.array([14, 16, 12, 12, 8, 8, 5, 6, 3, 3, 2, 2, 1], float)  # relative frequency of 1 … 13 implants


def sample_patient(rng: np.random.Generator, lines: tuple[ProductLine, ...]) -> Patient:
    """Both jaws of a patient whose implants come from ``lines``."""
    canvas = Canvas(-WIDTH / 2, -HEIGHT / 2, WIDTH, HEIGHT, STEP)
    arches = Arches.sample(rng)
    draw_head(canvas, rng, arches)
    count = int(rng.choice(13, p=COUNTS / COUNTS.sum())) + 1
    sites = _sites(rng)
    chosen = _choose(rng, sites, count)
    line = lines[int(rng.integers(len(lines)))]
    implants, roots = [], np.zeros(canvas.tissue.shape, bool)
    toothless = {upper: rng.random() < (0.45 if count > 5 else 0.06) for upper in (True, False)}
    for index, (upper, side, position, x) in enumerate(sites):
        (px, py), angle = arches.site(upper, x)
        if index in chosen:
            solid = sample_solid(rng, line if rng.random() < 0.93 else lines[int(rng.integers(len(lines)))])
            implants.append((upper, _place(rng, solid, (px, py), angle)))
        elif not toothless[upper] and rng.random() > (0.35 if position == 7 else 0.1):
            lean = side * (0.1 - 0.02 * position) * (1 if upper else -1) + float(rng.normal(0, 0.05))
            raised = -1.5 if upper else 1.5
            tooth = Tooth.sample(rng, upper, position, (px, py - raised), angle + lean)
            roots |= draw_treated_tooth(canvas, tooth, rng)
    draw_lamina(canvas, roots, float(rng.uniform(0.05, 0.15)))
    placed = _restore(canvas, rng, implants)
    if rng.random() < 0.05:
        draw_screw(canvas, rng, *arches.site(False, float(rng.uniform(-60, 60)))[0])
    return Patient("panoramic", canvas, placed, False, arches.bone_depth(canvas, [(i.x, i.y) for i in placed]))


def _sites(rng: np.random.Generator) -> list[tuple[bool, int, int, float]]:
    """All 32 places for a tooth: jaw, side, position from the midline, millimetres along the arch."""
    sites = []
    for upper, table in ((True, UPPER), (False, LOWER)):
        for side in (-1, 1):
            x = float(rng.uniform(0, 0.6))
            for position, (width, _, _, _) in enumerate(table):
                # Panoramics magnify across the arch a little more at the front than at the back.
                wide = width * (1.06 if position < 3 else 1.0)
                sites.append((upper, side, position, side * (x + wide / 2)))
                x += wide + 0.15
    return sites


def _choose(rng: np.random.Generator, sites: list[tuple[bool, int, int, float]], count: int) -> set[int]:
    """Sites of the implants, in one or two clusters, not in the third molars' place and not side by side when many."""
    weights = np.array([0.0 if site[2] == 7 else (0.5 if site[2] < 2 else 1.0) for site in sites])
    start = int(rng.choice(len(sites), p=weights / weights.sum()))
    place = np.array([site[3] for site in sites])
    jaw = np.array([site[0] for site in sites])
    spread = rng.uniform(10, 60)
    near = np.exp(-(((place - place[start]) / spread) ** 2)) * np.where(jaw == jaw[start], 1.0, rng.choice([0.03, 0.6]))
    weights = weights * (near + 1e-3)
    chosen = {start}
    weights[start] = 0
    while len(chosen) < count:
        index = int(rng.choice(len(sites), p=weights / weights.sum()))
        chosen.add(index)
        weights[index] = 0
        if count > 5:
            weights[(np.abs(place - place[index]) < 9) & (jaw == jaw[index])] *= 0.15
    return chosen


def _place(rng: np.random.Generator, solid: Solid, point: tuple[float, float], angle: float) -> PlacedImplant:
    sink = -solid.line.collar[0] if solid.line.level == "tissue" else float(rng.normal(0.3, 0.5))
    lean = angle + float(np.clip(rng.normal(0, 0.125), -0.3, 0.3))
    x, y = point[0] + sink * np.sin(angle), point[1] + sink * np.cos(angle)
    return PlacedImplant(
        solid,
        float(x),
        float(y),
        lean,
        float(np.clip(rng.normal(0, 0.1), -0.26, 0.26)),
        float(rng.uniform(-1.5, 1.5)),
        0.0,
    )


def _restore(
    canvas: Canvas, rng: np.random.Generator, implants: list[tuple[bool, PlacedImplant]]
) -> tuple[PlacedImplant, ...]:
    """Restore runs of neighbouring implants of one jaw together."""
    placed = []
    for upper in (True, False):
        group = sorted((implant for jaw, implant in implants if jaw == upper), key=lambda implant: implant.x)
        while group:
            run = 1
            while run < len(group) and run < 4 and group[run].x - group[run - 1].x < 14:
                run += 1
            for implant, screw in zip(group[:run], restore(canvas, group[:run], rng), strict=True):
                placed.append(replace(implant, screw=screw))
            group = group[run:]
    return tuple(placed)


def sample_view(rng: np.random.Generator, patient: Patient, size: tuple[int, int]) -> View:
    """A whole panoramic, stretched or cropped to ``size`` (height, width)."""
    height, width = size
    shown = float(rng.uniform(172, 206))
    mm_x = shown / width
    mm_y = mm_x * float(rng.uniform(0.95, 1.06))
    centre = [float(rng.normal(0, 2)), float(rng.normal(0, 2))]
    if width < 1.5 * height:  # a square file holds a whole panoramic squeezed, or a part of one
        if rng.random() < 0.35:
            mm_y = float(rng.uniform(96, 112)) / height
        else:
            mm_x = float(rng.uniform(75, 115)) / width
            mm_y = min(mm_x * float(rng.uniform(0.8, 1.2)), HEIGHT / REACH / height)
            target = patient.implants[int(rng.integers(len(patient.implants)))]
            limit = max(0.0, shown / 2 - mm_x * width / 2)
            centre = [float(np.clip(target.x + rng.normal(0, 12), -limit, limit)), float(rng.normal(0, 4))]
    turn = float(rng.choice([0.0, rng.uniform(-0.2, 0.2)], p=[0.75, 0.25]))
    lean = float(rng.normal(0, 0.02))
    middle = patient.canvas.keep_inside((centre[0], centre[1]), (mm_x * width, mm_y * height), lean)
    return View(
        matrix=view_matrix(middle, (mm_x, mm_y), lean, turn, False, size),
        size=size,
        frame=Frame((width / 2, height / 2), (width / 2 * 1.02, height / 2 * 1.02), 0.0, turn, 0.0, 0.0),
        exposure=Exposure.sample(rng, panoramic=True),
        tilt=float(rng.normal(0, 0.03)),
        spin=float(rng.normal(0, 0.05)),
        quality=int(rng.integers(82, 97)),
    )
