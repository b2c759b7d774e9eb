"""Known implants: the ground truth of dataset dicts, implant by implant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from implantdet.assembly.gather import Meaning
from implantdet.assembly.geometry import Array, union
from implantdet.assembly.likelihood import directions
from implantdet.data.edge import touches_frame
from implantdet.structures import SLOTS, Box, Scale
from implantdet.taxonomy import SYSTEM, THIRDS


@dataclass
class KnownImplant:
    """What the annotations of one image say about one implant.

    Attributes:
        boxes: of the annotated thirds and, under ``system``, of the whole implant.
        values: axis → value; axes that cannot be assessed are absent.
        system: name, if it is annotated.
        product_line: title, if it is annotated.
        cut: slots whose box touches the frame of the image.
    """

    boxes: dict[str, Box] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    system: str | None = None
    product_line: str | None = None
    cut: set[str] = field(default_factory=set)

    @property
    def box(self) -> Box:
        """Round the whole implant: as annotated, or else round its thirds."""
        if SYSTEM in self.boxes:
            return self.boxes[SYSTEM]
        x0, y0, x1, y1 = union(np.array(list(self.boxes.values()))).tolist()
        return (x0, y0, x1, y1)

    @property
    def direction(self) -> Array | None:
        """[2] from the first annotated third to the last; None with fewer than two."""
        thirds = [self.boxes[third] for third in THIRDS if third in self.boxes]
        return directions(np.array([thirds]))[0] if len(thirds) > 1 else None


def known_implants(record: dict[str, Any], classes: Sequence[Meaning | None]) -> list[KnownImplant]:
    """The implants of one dataset dict: annotations that share ``implant_id``.

    A whole implant without it is one of its own; nobody knows which parts without it belong together. Where boxes of
    one third differ from axis to axis, theirs is the mean.
    """
    implants: dict[tuple[str, int], KnownImplant] = {}
    boxes: dict[tuple[tuple[str, int], str], list[Box]] = {}
    for index, annotation in enumerate(record.get("annotations", ())):
        meaning = classes[annotation["category_id"]]
        if meaning is None or annotation.get("iscrowd", 0):
            continue
        if "implant_id" in annotation:
            key = "implant", annotation["implant_id"]
        elif meaning.slot == SYSTEM:
            key = "annotation", index
        else:
            continue
        implant = implants.setdefault(key, KnownImplant())
        x0, y0, x1, y1 = map(
            float, BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
        )
        if meaning.slot == SYSTEM:
            implant.system, implant.product_line = meaning.value, annotation.get("product_line")
        else:
            implant.values[meaning.axis] = meaning.value
        boxes.setdefault((key, meaning.slot), []).append((x0, y0, x1, y1))
        if touches_frame(annotation, record):
            implant.cut.add(meaning.slot)
    for (key, slot), same in boxes.items():
        if len(set(same)) > 1:
            x0, y0, x1, y1 = map(fmean, zip(*same, strict=True))  # which is exact, in whatever order
            same = [(x0, y0, x1, y1)]
        implants[key].boxes[slot] = same[0]
    return list(implants.values())


def readings_per_part(known: Iterable[KnownImplant]) -> Array:
    """[4] annotations that an ordinary part of every slot has; 1 where there are none."""
    annotations, parts = np.zeros(len(SLOTS)), np.zeros(len(SLOTS))
    for implant in known:
        for k, slot in enumerate(SLOTS):
            parts[k] += slot in implant.boxes
            annotations[k] += sum(axis.split(".")[0] == slot for axis in implant.values)
        annotations[-1] += SYSTEM in implant.boxes
    return np.where(parts > 0, annotations / np.maximum(parts, 1), 1.0)


def scale_of(record: dict[str, Any]) -> Scale | None:
    """The scale of a dataset dict's image; None where nobody knows it."""
    return record.get("mm_per_pixel", record.get("mm_per_pixel_matrix"))
