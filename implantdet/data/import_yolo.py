"""Read YOLO labels: plain boxes or polygons, Ultralytics and Roboflow layouts.

One text file per image, one object per line: ``class x_centre y_centre width height`` or ``class x1 y1 x2 y2 x3 y3 …``,
as fractions of the image. The label of ``…/images/NAME.jpg`` is ``…/labels/NAME.txt``, or ``NAME.txt`` beside
the image. Class names come from ``data.yaml``, ``classes.txt`` or ``obj.names``, of which all have to
list the same. The folders that data.yaml names are ignored: they are those of the machine that exported it.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from implantdet.data.checks import shortened
from implantdet.data.idd import IMAGES
from implantdet.data.problems import DataError, Problem
from implantdet.data.source import FileIndex, Source, SourceImage, SourceObject, split_of

_NAME_LISTS = ("classes.txt", "obj.names")


def read_yolo(root: Path) -> Source:
    """Read all images and labels below ``root``.

    Raises:
        DataError: no list of class names, or one that cannot be read.
    """
    index = FileIndex(root)
    names = _class_names(index)
    source = Source(root, classes=dict.fromkeys(names, ""), notes=index.notes())
    labels = {path for path in index.files if path.suffix == ".txt" and path.name not in _NAME_LISTS}
    taken: dict[PurePosixPath, PurePosixPath] = {}
    # What a label speaks of is an image, whatever its suffix.
    others = {path for path in index.files if IMAGES in path.parent.parts and _label_path(path) in labels}
    for path in sorted({*index.images(), *others}):
        label = _label_path(path)
        if label not in labels and path.with_suffix(".txt") in labels:
            label = path.with_suffix(".txt")
        image = SourceImage(str(path), "", path, relative=True, fields=split_of(path), fault=index.fault(path))
        source.images.append(image)
        if label in taken:
            image.fault = f"shares the label {label} with {taken[label]}"
        elif label not in labels:
            image.fault = f"missing label: there is no {label} (an image without objects has an empty one)"
        else:
            taken[label] = path
            image.file = str(label)
            leaves = index.fault(label)
            if leaves:
                image.fault = image.fault or f"label: {leaves}"
            else:
                _read_label(source, image, names)
    folders = {label.parent for label in taken}
    for label in sorted(labels - taken.keys()):
        # Other text files (a README beside the images' folder) are no labels.
        if label.parent in folders or "labels" in label.parent.parts:
            lines = _lines(root / label) or []
            source.problems.append(Problem(str(label), "", f"missing image: its {len(lines)} annotations go with it"))
            source.lost_annotations += len(lines)
    return source


def _label_path(image: PurePosixPath) -> PurePosixPath:
    parts = list(image.with_suffix(".txt").parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return PurePosixPath(*parts)


def _lines(path: Path) -> list[tuple[int, list[str]]] | None:
    """(line number, fields) of the lines that are not blank; None if the file is no text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return None
    return [(number, line.split()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]


def _read_label(source: Source, image: SourceImage, names: list[str]) -> None:
    lines = _lines(source.root / image.file)
    if lines is None:
        image.fault = "label is not a text file"
        return
    for number, fields in lines:
        parsed = _parse(fields, names)
        if isinstance(parsed, str):
            source.problems.append(Problem(image.file, f"line {number}", parsed))
            source.lost_annotations += 1
        else:
            label, bbox, polygons = parsed
            image.objects.append(SourceObject(f"line {number}", label, bbox, polygons))


def _parse(fields: list[str], names: list[str]) -> str | tuple[str, list[float] | None, list[list[float]] | None]:
    """(class name, box, polygons) of one line, or what is wrong with it."""
    if not re.fullmatch(r"\d{1,9}", fields[0]) or int(fields[0]) >= len(names):
        return f"unknown class: {shortened(fields[0])}; there are the classes 0 to {len(names) - 1}"
    try:
        values = [float(field) for field in fields[1:]]
    except ValueError as error:
        return f"not a number: {error}"
    label = names[int(fields[0])]
    if len(values) == 4:
        x, y, w, h = values
        return label, [x - w / 2, y - h / 2, w, h], None
    if len(values) < 6 or len(values) % 2:
        return f"{len(fields)} fields; expected 5 (a box), or 7 and more, an odd number (a polygon)"
    return label, None, [values]


def _class_names(index: FileIndex) -> list[str]:
    """The one list of class names; several exports in one folder may number their classes differently."""
    found: dict[PurePosixPath, list[str]] = {}
    for path in index.files:
        if path.suffix in (".yaml", ".yml"):
            names = _yaml_names(index.inside(path))
            if names is not None:
                found[path] = names
        elif path.name in _NAME_LISTS:
            found[path] = _text_names(index.inside(path))
    if not found:
        raise DataError(
            f"{index.root}: no class names; expected data.yaml with 'names', or classes.txt with one per line"
        )
    first, names = next(iter(found.items()))
    for path, others in found.items():
        if others != names:
            raise DataError(
                f"{index.root}: {first} and {path} list other class names, {shortened(names)} and {shortened(others)}; "
                "expected one list for all labels: import each folder with its own list by itself"
            )
    return names


def _text_names(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: class names must be UTF-8 text: {error}") from error
    return _checked([line.strip() for line in lines], path)


def _yaml_names(path: Path) -> list[str] | None:
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or a date that no calendar has
        raise DataError(f"{path}: not a YAML file: {error}") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):  # {0: first, 1: second}
        if set(names) != set(range(len(names))):
            raise DataError(f"{path}: 'names' must number the classes from 0 on; found {list(names)}")
        names = [names[number] for number in range(len(names))]
    if names is None:
        return None
    if "kpt_shape" in content:
        raise DataError(f"{path}: labels with keypoints ('kpt_shape'); expected boxes or polygons: export it as these")
    if not isinstance(names, list) or content.get("nc", len(names)) != len(names):
        raise DataError(f"{path}: 'names' must list nc={content.get('nc')} class names; found {names!r}")
    return _checked([str(name) for name in names], path)


def _checked(names: list[str], path: Path) -> list[str]:
    if not all(names) or len(set(names)) != len(names) or not names:
        raise DataError(f"{path}: expected class names, none of them empty or there twice; found {names!r}")
    return names
