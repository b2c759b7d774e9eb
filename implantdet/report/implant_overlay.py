"""Assembled implants drawn on their radiograph: parts, inferred parts dashed, axis, box, and the ranked systems."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from implantdet.report.overlay import (
    COLUMN,
    LENGTH,
    LINE,
    OTHER_COLOUR,
    TEXT,
    Line,
    Note,
    on_panel,
    open_panel,
    write_footer,
    write_key,
    write_notes,
)
from implantdet.taxonomy import COLOURS, SYSTEM, THIRDS

DASH = 7  # pixels of a dash, and of a gap
FOOTER = "Of the listed makers alone. A hint, no diagnosis."
SHOWN = 0.01  # candidates that are less probable are not written


def draw_implants(image: np.ndarray, implants: Sequence[dict[str, Any]], title: str) -> Image.Image:
    """One radiograph with its assembled implants and, beside it, what each may be.

    Args:
        image: H×W, uint8.
        implants: as in ``implants.json``.
        title: stands above the image.

    Returns:
        An RGB picture, as those of ``draw_panel``.
    """
    panel, scale = open_panel(image, title)
    thirds = [(third, COLOURS[third]) for third in THIRDS]
    write_key(panel, [*thirds, ("whole implant", COLOURS[SYSTEM]), ("axis", OTHER_COLOUR), ("dashed: inferred", TEXT)])
    drawn = panel.copy()
    draw = ImageDraw.Draw(drawn)
    for implant in implants:
        draw_implant(draw, implant, partial(on_panel, scale=scale))
    # An inferred box may leave the radiograph; nothing is drawn on what stands beside it.
    panel.paste(drawn.crop((0, 2 * LINE, panel.width - COLUMN, panel.height)), (0, 2 * LINE))
    notes = [
        Note(implant["box"], [Line(text, COLOURS[SYSTEM]) for text in describe(implant)], implant["number"])
        for implant in implants
    ]
    panel = write_notes(panel, scale, notes)
    write_footer(panel, FOOTER)
    return panel


def draw_implant(
    draw: ImageDraw.ImageDraw, implant: dict[str, Any], place: Callable[[Sequence[float]], tuple[int, ...]]
) -> None:
    """Draw the boxes and the axis of an implant of ``implants.json``; ``place`` gives x, y, x, y, … in the picture."""
    draw.rectangle(place(implant["box"]), outline=COLOURS[SYSTEM], width=2)
    for part in implant["parts"]:
        colour = COLOURS[part["third"]]
        if part["box_std"] is None:
            draw.rectangle(place(part["box"]), outline=colour, width=2)
        else:
            _dashed_rectangle(draw, place(part["box"]), colour)
    if implant["axis"] is not None:
        draw.line(place([value for point in implant["axis"] for value in point]), fill=OTHER_COLOUR, width=2)


def sure_enough(implants: Sequence[dict[str, Any]], min_score: float) -> tuple[list[dict[str, Any]], str]:
    """The implants from a score on, and a title that says how many there are."""
    shown = [implant for implant in implants if implant["score"] >= min_score]
    many = f"{len(shown) or 'no'} implant{'' if len(shown) == 1 else 's'}"
    return shown, f"{many} of score {min_score:.0%} or more"


def describe(implant: dict[str, Any]) -> list[str]:
    """What is known of an implant, line by line: systems, product lines, evidence, size."""
    lines = []
    if ranking := implant["ranking"]:
        lines += _fit(ranking["systems"], "unknown, like " if ranking["unknown"] else "")
        if ranking["line_set"] is not None:  # else nobody has looked how right these probabilities are
            lines += [f"  {line}" for line in _fit(ranking["lines"])]
        if ranking["fit"] is None:
            lines.append("  its design could not be read")
        elif ranking["unknown"] is None:
            lines.append("  whether unknown: not judged")
        for word, sign in (("for", 1), ("against", -1)):
            if reasons := reasons_of(ranking, sign):
                lines.append(f"  {word}: {reasons[0]}")
    length, inferred = length_of(implant), inferred_thirds(implant)
    lines.append(f"  score {percent(implant['score'])}" + (f", {length} in the image" if length else ""))
    return [*lines, f"  inferred: {', '.join(inferred)}"] if inferred else lines


def reasons_of(ranking: Mapping[str, Any], sign: int) -> list[str]:
    """What speaks for (1) or against (-1) the most probable system, the weightiest first, with scores of readings."""
    evidence = sorted(ranking["systems"][0]["evidence"], key=lambda reason: -abs(reason["weight"]))
    return [
        f"{reason['axis']} {reason['value']} ".replace(".", " ").replace("_", " ") + percent(reason["score"])
        for reason in evidence
        if sign * reason["weight"] > 0 and reason["axis"] != SYSTEM  # that the whole looks so explains nothing
    ]


def length_of(implant: Mapping[str, Any]) -> str:
    """The length in millimetres, ``about`` it if an end was not seen; nothing where the scale is not known."""
    if implant["length_mm"] is None:
        return ""
    is_sure = {THIRDS[0], THIRDS[-1]}.isdisjoint(inferred_thirds(implant))
    return f"{implant['length_mm']:.1f} mm" if is_sure else f"about {implant['length_mm']:.0f} mm"


def inferred_thirds(implant: Mapping[str, Any]) -> list[str]:
    """The thirds that were not detected."""
    return [part["third"] for part in implant["parts"] if part["box_std"] is not None]


def _fit(candidates: Sequence[dict[str, Any]], start: str = "") -> list[str]:
    """Names with their probabilities, most probable first, as many as fit one line; none if there are no candidates."""
    line = start
    for candidate in candidates:
        name = f"{candidate['name']} {percent(candidate['probability'])}"
        is_too_much = line != start and len(line) + len(name) > LENGTH - 4
        if candidate["probability"] < SHOWN or is_too_much:
            break
        line += name if line == start else f", {name}"
    return [line] if line != start else []


def percent(share: float) -> str:
    """No model is sure."""
    return ">99%" if share >= 0.995 else f"{share:.0%}"


def _dashed_rectangle(draw: ImageDraw.ImageDraw, box: Sequence[int], colour: tuple[int, int, int]) -> None:
    x0, y0, x1, y1 = box
    for start, end in (((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x0, y1), (x1, y1)), ((x0, y0), (x0, y1))):
        length = math.dist(start, end)
        for begin in range(0, int(length), 2 * DASH):
            here, there = begin / length, min(begin + DASH, length) / length
            points = [s + share * (e - s) for share in (here, there) for s, e in zip(start, end, strict=True)]
            draw.line(points, fill=colour, width=2)
