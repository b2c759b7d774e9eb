"""Periapical scenes: a few implants, their neighbours, one jaw."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from implantdet.phantom.arrays import Array
from implantdet.phantom.bone import draw_jaw, draw_lamina, wave
from implantdet.phantom.canvas import Canvas
from implantdet.phantom.distractors import draw_holder, draw_screw, draw_treated_tooth
from implantdet.phantom.frame import sample_frame
from implantdet.phantom.lines import ProductLine
from implantdet.phantom.restorations import restore
from implantdet.phantom.scene import Patient, PlacedImplant, View, view_matrix
from implantdet.phantom.solid import Solid
from implantdet.phantom.teeth import Tooth
from implantdet.phantom.xray import Exposure

WIDTH, TOP, BOTTOM, STEP = 66.0, -18.0, 32.0, 0.09  # of the canvas, mm
COUNTS = (0.46, 0.33, 0.15, 0.06)  # shares of patients with 1, 2, 3, 4 implants in a row


def sample_solid(rng: np.random.Generator, line: ProductLine) -> Solid:
    """An implant of the line; slender middle sizes are commoner than extremes."""

    def pick(sizes: tuple[float, ...], share: float) -> float:
        return float(sizes[min(int(share * len(sizes)), len(sizes) - 1)])

    diameter, length = pick(line.diameters, float(rng.beta(2, 2.6))), pick(line.lengths, float(rng.beta(3, 2)))
    return Solid(line, diameter, length, float(rng.uniform(0, 2 * np.pi)))


def sample_patient(rng: np.random.Generator, lines: tuple[ProductLine, ...]) -> Patient:
    """A patient whose implants come from ``lines`` (one line per patient, rarely two)."""
    upper = bool(rng.random() < 0.48)
    canvas = Canvas(0.0, TOP, WIDTH, BOTTOM - TOP, STEP)
    count = int(rng.choice(4, p=COUNTS)) + 1
    line = lines[int(rng.integers(len(lines)))]
    solids = [
        sample_solid(rng, line if rng.random() < 0.9 else lines[int(rng.integers(len(lines)))]) for _ in range(count)
    ]
    spots = _spots(rng, solids)
    crest = wave(rng, canvas.x, 11, 0.5)
    loss = [float(max(0.0, rng.normal(0.2, 1.0))) if rng.random() < 0.5 else 0.0 for _ in spots]
    for spot, solid, deep in zip(spots, solids, loss, strict=True):  # saucers of lost bone around the necks
        crest = crest + np.float32(deep) * np.exp(-(((canvas.x - spot) / (0.9 * solid.diameter)) ** 2)).astype(
            np.float32
        )
    draw_jaw(canvas, rng, upper, crest)
    _draw_teeth(canvas, rng, upper, spots, solids, crest)
    implants = [
        _place(canvas, rng, solid, spot, crest - deep) for solid, spot, deep in zip(solids, spots, loss, strict=True)
    ]
    screws = restore(canvas, implants, rng)
    implants = [replace(implant, screw=screw) for implant, screw in zip(implants, screws, strict=True)]
    _draw_extras(canvas, rng)
    return Patient("periapical", canvas, tuple(implants), upper, _bone_depth(canvas, implants))


def _spots(rng: np.random.Generator, solids: list[Solid]) -> list[float]:
    """Where the implants stand along the arch, around the middle of the canvas."""
    spots = [0.0]
    for left, right in pairwise(solids):
        gap = rng.uniform(2.2, 5.0) if rng.random() < 0.75 else rng.uniform(8, 12)
        spots.append(spots[-1] + (left.diameter + right.diameter) / 2 + gap)
    return [float(spot + WIDTH / 2 - spots[-1] / 2) for spot in spots]


def _place(canvas: Canvas, rng: np.random.Generator, solid: Solid, x: float, crest: Array) -> PlacedImplant:
    height = float(np.interp(x, canvas.x.ravel(), crest.ravel()))
    if solid.line.level == "tissue":
        y = height - solid.line.collar[0] + rng.normal(0.2, 0.4)
    else:
        y = height + (rng.uniform(0, 2) if solid.line.system == "Bicon" else rng.normal(0.1, 0.5))
    return PlacedImplant(
        solid,
        x,
        float(y),
        float(rng.normal(0, 0.09)),
        float(np.clip(rng.normal(0, 0.09), -0.24, 0.24)),
        float(rng.uniform(-1.5, 1.5)),
        0.0,
    )


def _draw_teeth(
    canvas: Canvas, rng: np.random.Generator, upper: bool, spots: list[float], solids: list[Solid], crest: Array
) -> None:
    """Natural neighbours on both sides, with lamina dura; gaps and toothless stretches happen."""
    roots = np.zeros(canvas.tissue.shape, bool)
    first = int(rng.integers(1, 5))
    for side in (-1, 1):
        if rng.random() < 0.2:
            continue
        edge = (spots[0] - solids[0].diameter / 2) if side < 0 else (spots[-1] + solids[-1].diameter / 2)
        edge += side * float(rng.uniform(1.3, 3.5) if rng.random() < 0.8 else rng.uniform(5, 9))
        position = first
        while 1 < edge < WIDTH - 1:
            position = int(np.clip(position + (side if first else 1), 0, 7))
            angle = float(rng.normal(0, 0.07))
            tooth = Tooth.sample(rng, upper, position, (0.0, 0.0), angle)
            x = edge + side * tooth.width / 2
            neck = float(np.interp(x, canvas.x.ravel(), crest.ravel())) - float(rng.uniform(0.8, 2.2))
            if rng.random() > 0.1:
                roots |= draw_treated_tooth(canvas, replace(tooth, neck=(x, neck)), rng)
            edge += side * (tooth.width + float(rng.uniform(0.0, 0.5)))
    draw_lamina(canvas, roots, float(rng.uniform(0.08, 0.22)))


def _draw_extras(canvas: Canvas, rng: np.random.Generator) -> None:
    if rng.random() < 0.06:
        for _ in range(int(rng.integers(1, 3))):
            draw_screw(canvas, rng, rng.uniform(15, WIDTH - 15), rng.uniform(1, 8))
    if rng.random() < 0.12:
        draw_holder(canvas, rng, rng.uniform(22, WIDTH - 22), rng.uniform(-13, -10))


def _bone_depth(canvas: Canvas, implants: list[PlacedImplant]) -> float:
    """Median optical depth of the bone beside the implants."""
    samples = []
    for implant in implants:
        for across in (-1.0, 1.0):
            for z in np.linspace(0.4, 0.9, 8) * implant.solid.length:
                column, row = np.round(
                    canvas.pixels(np.array(implant.at(z, across * (implant.solid.max_radius + 0.8))))
                ).astype(int)
                rows, columns = canvas.tissue.shape
                samples.append(canvas.tissue[np.clip(row, 0, rows - 1), np.clip(column, 0, columns - 1)])
    return float(np.median(samples))


def sample_view(rng: np.random.Generator, patient: Patient, size: int) -> View:
    """A shot of one to all implants of the patient on a square file of ``size`` pixels."""
    implants = patient.implants
    target = implants[int(rng.integers(len(implants)))]
    length = float(np.median([implant.solid.length for implant in implants]))
    share = float(np.clip(rng.normal(0.325, 0.045), 0.24, 0.45))
    height = float(np.clip(length / share, 19, 42))
    # Two files of three are stretched to a square from sensors of another shape.
    width = float(np.clip(height * rng.choice([1.0, rng.uniform(0.85, 1.4)], p=[0.33, 0.67]), 18, 46))
    middle = target.at(target.solid.length * float(rng.uniform(0.25, 0.65)))
    if rng.random() < 0.6:  # centred on the group rather than on one implant
        middle = (float(np.mean([implant.x for implant in implants])), middle[1])
    centre = (middle[0] + float(rng.normal(0, 0.19)) * width, middle[1] + float(rng.normal(0.02, 0.1)) * height)
    turn = float(rng.choice([0.0, rng.uniform(-0.28, 0.28)], p=[0.5, 0.5]))
    lean = float(rng.normal(0, 0.09))
    centre = patient.canvas.keep_inside(centre, (width, height), lean)
    return View(
        matrix=view_matrix(centre, (width / size, height / size), lean, turn, patient.upper, (size, size)),
        size=(size, size),
        frame=sample_frame(rng, (size, size), turn),
        exposure=Exposure.sample(rng, panoramic=False),
        tilt=float(np.clip(rng.normal(0, 0.05), -0.12, 0.12)),
        spin=float(rng.normal(0, 0.08)),
        quality=int(rng.integers(82, 97)),
    )
