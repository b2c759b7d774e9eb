"""Read labelme: one JSON file per image, with rectangles and polygons. Shapes with one ``group_id`` are one implant."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from implantdet.data.checks import is_number
from implantdet.data.idd import read_json
from implantdet.data.problems import DataError, Problem
from implantdet.data.source import FileIndex, Source, SourceImage, SourceObject, split_of


def read_labelme(src: Path) -> Source:
    """Read the labelme file ``src``, or every labelme file below the folder ``src``."""
    root = src.parent if src.is_file() else src
    index = FileIndex(root)
    source = Source(root, notes=index.notes())
    files = [PurePosixPath(src.name)] if src.is_file() else [path for path in index.files if path.suffix == ".json"]
    for file in files:
        try:
            content = read_json(index.inside(file))
        except DataError as error:
            source.problems.append(Problem(str(file), "", str(error)))
            continue
        if isinstance(content, dict) and isinstance(content.get("shapes"), list):
            _read_file(source, index, file, content)
        else:
            source.notes.append(f"{file}: left aside, it is no labelme file")
    if src.is_dir():
        recorded = {image.path for image in source.images}
        for path in index.images():
            if path not in recorded:
                source.images.append(SourceImage(str(path), "", path, fault="missing label: no labelme file names it"))
    labels = {item.label for image in source.images for item in image.objects}
    source.classes = dict.fromkeys(sorted(labels), "")
    return source


def _read_file(source: Source, index: FileIndex, file: PurePosixPath, content: dict[str, Any]) -> None:
    path, fault = index.find(content.get("imagePath"), file)
    sides = content.get("imageWidth"), content.get("imageHeight")
    size = None if None in sides else sides  # labelme leaves them out of old files
    image = SourceImage(str(file), "", path, size, fields=split_of(path), fault=fault)
    source.images.append(image)
    for number, shape in enumerate(content["shapes"], start=1):
        item = _object(shape, f"shape {number}")
        if isinstance(item, str):
            source.problems.append(Problem(str(file), f"shape {number}", item))
            source.lost_annotations += 1
        else:
            image.objects.append(item)


def _object(shape: Any, record: str) -> SourceObject | str:
    """The object that a shape stands for, or why it stands for none."""
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not shape["label"]:
        return "unknown class: the shape has no label"
    kind, points = shape.get("shape_type", "polygon"), shape.get("points")
    if kind not in ("rectangle", "polygon"):
        return f"shape of type {kind!r}; expected a rectangle or a polygon"
    if not isinstance(points, list) or not all(
        isinstance(point, list) and len(point) == 2 and all(map(is_number, point)) for point in points
    ):
        return f"'points' must be pairs of finite numbers; found {points!r}"
    if len(points) < (2 if kind == "rectangle" else 3):
        return f"a {kind} of {len(points)} point(s)"
    group = shape.get("group_id")
    item = SourceObject(record, shape["label"], None, group=None if group is None else str(group))
    if kind == "polygon":
        item.segmentation = [[value for point in points for value in point]]
    else:
        low, high = np.min(points, axis=0), np.max(points, axis=0)
        item.bbox = [*low.tolist(), *(high - low).tolist()]
    return item
