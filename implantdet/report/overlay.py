"""Detections drawn on their radiograph, for the eye of a dentist.

Boxes of different axes of one third coincide, so they are drawn once. What was said about them stands beside the
image, under a number that stands at the box too: no other text covers the radiograph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from implantdet.assembly.geometry import reading_order
from implantdet.data.files import written_whole
from implantdet.taxonomy import COLOURS, THIRDS

HEIGHT = 720  # of a panel, in pixels; smaller images are enlarged to it
COLUMN = 380  # width of the text beside the image, in pixels
INDENT = 36  # of the text in it, behind the number
LENGTH = (COLUMN - INDENT) // 9  # characters that fit a line
LINE, SMALLEST_LINE, GAP = 20, 14, 5  # heights of a line of text, and between notes, in pixels
COINCIDENT_IOU = 0.7  # boxes that overlap more are drawn as one
BACKGROUND, TEXT = (18, 20, 24), (225, 228, 232)
OTHER_COLOUR = (204, 121, 167)  # of the same palette as COLOURS


@dataclass(frozen=True)
class Detection:
    """One box on an image.

    Attributes:
        box: ``(x0, y0, x1, y1)`` in pixels of the image.
        name: of its category.
        supercategory: ``coronal``, ``middle``, ``apical``, ``system``, or anything else.
        score: in [0, 1]; None for ground truth.
        implant_id: what the annotations of one implant share; None where nobody knows.
    """

    box: tuple[float, float, float, float]
    name: str
    supercategory: str
    score: float | None = None
    implant_id: int | None = None

    @property
    def label(self) -> str:
        """The name without its third, and the score in per cent."""
        name = " ".join(self.name.removeprefix(f"{self.supercategory}.").split(".")).replace("_", " ")
        return name if self.score is None else f"{name} {self.score:.0%}"


class Line(NamedTuple):
    """Text in one colour."""

    text: str
    colour: tuple[int, int, int]


class Note(NamedTuple):
    """Text beside the radiograph, on what is in a box (x0, y0, x1, y1, pixels of the image).

    Its number is the given one, or its place in the order in which one reads.
    """

    box: Sequence[float]
    lines: Sequence[Line]
    number: int | None = None


def detections_of(annotations: Sequence[dict[str, Any]], categories: Sequence[dict[str, Any]]) -> list[Detection]:
    """Detections from COCO annotations (ground truth) or COCO results (with ``score``)."""
    by_id = {category["id"]: category for category in categories}
    detections = []
    for annotation in annotations:
        x, y, width, height = annotation["bbox"]
        category = by_id[annotation["category_id"]]
        supercategory = category.get("supercategory") or ""
        box = (x, y, x + width, y + height)
        score, implant_id = annotation.get("score"), annotation.get("implant_id")
        detections.append(Detection(box, category["name"], supercategory, score, implant_id))
    return detections


def draw_panel(image: np.ndarray, detections: Sequence[Detection], title: str) -> Image.Image:
    """One radiograph with its boxes and, beside it, what was found.

    Args:
        image: H×W, uint8.
        detections: what to draw; boxes that coincide are drawn once, and implants that are known have one note each.
        title: stands above the image.

    Returns:
        An RGB picture, ``HEIGHT + 2 * LINE`` pixels high, or higher if the notes need it.
    """
    panel, scale = open_panel(image, title)
    draw = ImageDraw.Draw(panel)
    groups = _coincident(detections)
    for group in sorted(groups, key=lambda group: -_area(group[0].box)):  # whole implants lie under their parts
        draw.rectangle(on_panel(group[0].box, scale), outline=_colour(group), width=2)
    return write_notes(panel, scale, _notes(groups))


def open_panel(image: np.ndarray, title: str) -> tuple[Image.Image, float]:
    """A panel with a radiograph (H×W, uint8) under a title, and the factor by which it was enlarged."""
    scale = HEIGHT / image.shape[0]
    width = round(image.shape[1] * scale)
    radiograph = Image.fromarray(image).resize((width, HEIGHT), Image.Resampling.BICUBIC)
    panel = Image.new("RGB", (width + COLUMN, HEIGHT + 2 * LINE), BACKGROUND)
    panel.paste(radiograph.convert("RGB"), (0, 2 * LINE))
    ImageDraw.Draw(panel).text((6, 1), title, fill=TEXT, font=font(16))
    return panel, scale


def on_panel(points: Sequence[float], scale: float) -> tuple[int, ...]:
    """Pixels of the panel for x, y, x, y, … in pixels of the image."""
    return tuple(round(scale * value) + 2 * LINE * (index % 2) for index, value in enumerate(points))


def write_notes(panel: Image.Image, scale: float, notes: Sequence[Note]) -> Image.Image:
    """The panel with notes beside the radiograph, by their numbers or row by row of their boxes, and numbers at these.

    Many are written smaller; what does not fit even so makes the panel higher.
    """
    width, top, bottom = panel.width - COLUMN, 2 * LINE, panel.height - LINE  # below it, the footer
    num_lines = sum(len(note.lines) for note in notes)
    room = (bottom - top - GAP * len(notes)) // max(1, num_lines)
    step = min(LINE, max(SMALLEST_LINE, room))
    needed = top + step * num_lines + GAP * len(notes) + LINE
    if needed > panel.height:
        higher = Image.new("RGB", (panel.width, needed), BACKGROUND)
        higher.paste(panel, (0, 0))
        panel = higher
    draw, letters = ImageDraw.Draw(panel), font(3 * step // 4)
    in_order = [notes[k] for k in reading_order([note.box for note in notes])]
    for place, note in enumerate(sorted(in_order, key=lambda note: note.number or 0), start=1):
        number = str(note.number or place)
        _, y0, x1, y1 = on_panel(note.box, scale)
        beside = min(x1 + 4, width - LINE), max(2 * LINE, min((y0 + y1) // 2, panel.height - LINE))
        draw.text(beside, number, fill=TEXT, font=letters, anchor="lm", stroke_width=2, stroke_fill=BACKGROUND)
        draw.text((width + 8, top), number, fill=TEXT, font=letters)
        for line in note.lines:
            text = _shortened(line.text, letters, COLUMN - INDENT)
            draw.text((width + INDENT, top), text, fill=line.colour, font=letters)
            top += step
        top += GAP
    return panel


def write_footer(panel: Image.Image, text: str) -> None:
    """Write a line under the notes."""
    ImageDraw.Draw(panel).text((panel.width - COLUMN + 8, panel.height - LINE), text, fill=TEXT, font=font(13))


def _shortened(text: str, letters: ImageFont.FreeTypeFont, room: float) -> str:
    """A text that fits so many pixels: letters before its last word, which may be a score, give way to an ellipsis."""
    head, _, last = text.rpartition(" ")
    while head and letters.getlength(text) > room:
        head = head[:-1]
        text = f"{head}… {last}"
    return text


def write_key(panel: Image.Image, entries: Sequence[tuple[str, tuple[int, int, int]]]) -> None:
    """Write what the colours mean under the title, flush right."""
    draw, left = ImageDraw.Draw(panel), panel.width - 6.0
    for word, colour in reversed(entries):
        left -= draw.textlength(word, font=font(13))
        draw.text((left, LINE + 1), word, fill=colour, font=font(13))
        left -= 12


def side_by_side(panels: Sequence[Image.Image]) -> Image.Image:
    """Panels from left to right, on one ground."""
    picture = Image.new(
        "RGB", (sum(panel.width for panel in panels), max(panel.height for panel in panels)), BACKGROUND
    )
    left = 0
    for panel in panels:
        picture.paste(panel, (left, 0))
        left += panel.width
    return picture


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG, under a temporary name until it is whole."""
    with written_whole(path) as temporary:
        picture.save(temporary, format="PNG")


def _coincident(detections: Sequence[Detection]) -> list[list[Detection]]:
    """Detections of one supercategory whose boxes coincide with the first of their group, best score first."""
    groups: list[list[Detection]] = []
    for detection in sorted(detections, key=lambda detection: -(detection.score or 0.0)):
        for group in groups:
            kinds = [(each.supercategory, each.implant_id) for each in (group[0], detection)]
            if kinds[0] == kinds[1] and _iou(group[0].box, detection.box) > COINCIDENT_IOU:
                group.append(detection)
                break
        else:
            groups.append([detection])
    return groups


def _colour(group: Sequence[Detection]) -> tuple[int, int, int]:
    return COLOURS.get(group[0].supercategory, OTHER_COLOUR)


def _area(box: tuple[float, float, float, float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _iou(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = _area(a) + _area(b) - width * height
    return width * height / union if union > 0 else 0.0


def _notes(groups: Sequence[Sequence[Detection]]) -> list[Note]:
    """A note for every implant that is known, its system first, then its thirds in their order; else for every box."""
    by_implant: dict[tuple[str, int | None], list[Sequence[Detection]]] = {}
    for number, group in enumerate(groups):
        implant_id = group[0].implant_id
        key = ("box", number) if implant_id is None else ("implant", implant_id)
        by_implant.setdefault(key, []).append(group)
    notes = []
    for own in by_implant.values():
        own.sort(key=lambda group: THIRDS.index(group[0].supercategory) if group[0].supercategory in THIRDS else -1)
        box = max((group[0].box for group in own), key=_area)
        notes.append(Note(box, [Line(text, _colour(group)) for group in own for text in _wrap(group)]))
    return notes


def _wrap(group: Sequence[Detection]) -> list[str]:
    """What was said about one box, in lines that fit the column."""
    head = group[0].supercategory if group[0].supercategory in THIRDS else ""
    lines = [f"{head}:"] if head else []
    for label in sorted(detection.label for detection in group):
        if lines and len(lines[-1]) + len(label) < LENGTH:
            lines[-1] += f" {label}" if lines[-1].endswith(":") else f", {label}"
        else:
            lines.append(f"  {label}" if head else label)
    return lines


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The letters of all pictures, in a size."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)
