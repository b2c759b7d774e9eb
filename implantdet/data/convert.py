"""Turn what a reader found into IDD records, with a reason for everything that cannot be turned."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils
from tqdm import tqdm

from implantdet.data.checks import (
    OVERHANG,
    ROUNDING,
    annotation_fault,
    box_fault,
    escapes,
    image_fault,
    is_number,
    mask_area,
    segmentation_fault,
)
from implantdet.data.dicom import header_of
from implantdet.data.idd import IMAGES
from implantdet.data.images import read_radiograph
from implantdet.data.problems import DataError, Problem
from implantdet.data.source import Source, SourceImage, SourceObject, original_name
from implantdet.taxonomy import default_taxonomy


@dataclass
class Converted:
    """IDD content, and where its images lie.

    Attributes:
        content: ``images``, ``annotations``, ``categories``; ids count from 1.
        paths: the source's file of each image, relative to the source folder.
        clipped: annotations that stood out of the frame, their boxes by up to a pixel, and were cut off at its edge.
    """

    content: dict[str, list[dict[str, Any]]]
    paths: list[PurePosixPath] = field(default_factory=list)
    clipped: int = 0


def convert(source: Source) -> Converted:
    """Decode every image of ``source`` and check every record; what is wrong is added to ``source.problems``."""
    taxonomy = default_taxonomy()
    categories = [
        {"id": index, "name": name, "supercategory": taxonomy.supercategory(name) or supercategory}
        for index, (name, supercategory) in enumerate(source.classes.items(), start=1)
    ]
    category_ids = {category["name"]: category["id"] for category in categories}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    converted = Converted({"images": images, "annotations": annotations, "categories": categories})
    implants: dict[tuple[PurePosixPath, Any], int] = {}
    taken: dict[str, PurePosixPath] = {}
    for image in tqdm(source.images, desc="checking images", unit="image", disable=None):
        record = _image_record(image, len(images) + 1)
        key = record["file_name"].lower()  # names that differ by case only are one file on some systems
        fault = image.fault
        if fault is None and key in taken:
            fault = f"duplicate image: {taken[key]} has the same name"
        fault = fault or escapes(record["file_name"]) or _read_size(source, image, record)
        if fault:
            lost = f"; its {len(image.objects)} annotation(s) go with it" if image.objects else ""
            source.problems.append(Problem(image.file, image.record, fault + lost))
            continue
        taken[key] = image.path
        images.append(record)
        converted.paths.append(image.path)
        for item in image.objects:
            annotation, clipped = _annotation(image, item, record)
            reason = annotation if isinstance(annotation, str) else annotation_fault(annotation, record)
            if isinstance(annotation, str) or reason:
                source.problems.append(Problem(image.file, item.record, str(reason)))
                continue
            ids = {"id": len(annotations) + 1, "image_id": record["id"], "category_id": category_ids[item.label]}
            if item.group is not None:
                ids["implant_id"] = implants.setdefault((image.path, item.group), len(implants) + 1)
            annotations.append({**ids, **annotation})
            converted.clipped += clipped
    return converted


def _image_record(image: SourceImage, image_id: int) -> dict[str, Any]:
    # The source's folders stay in the name, so that equal names in two splits do not collide.
    folders = [part for part in image.path.parent.parts if part != IMAGES]
    record = {"id": image_id, "file_name": str(PurePosixPath(*folders, image.path.name)), **image.fields}
    name = original_name(image.path)
    if name is not None:
        record.setdefault("source_id", name.stem)
    return record


def _read_size(source: Source, image: SourceImage, record: dict[str, Any]) -> str | None:
    """Decode the image and put what it says of itself into ``record``; the reason if it cannot be used."""
    try:
        height, width = read_radiograph(source.root / image.path).shape
    except DataError as error:
        return str(error).replace(f"{source.root}/", "")
    if image.size is not None and image.size != (width, height):
        return f"image {image.path} is {width}×{height}, its record says {image.size[0]!r}×{image.size[1]!r}"
    record["width"], record["height"] = width, height
    scale, modality = header_of(source.root / image.path)
    if scale is not None and not {"mm_per_pixel", "mm_per_pixel_matrix"} & record.keys():
        record["mm_per_pixel" if isinstance(scale, float) else "mm_per_pixel_matrix"] = scale
    if modality is not None:
        record.setdefault("modality", modality)
    return image_fault(record)


def _annotation(image: SourceImage, item: SourceObject, record: dict[str, Any]) -> tuple[dict[str, Any] | str, bool]:
    """Box and mask in pixels inside the frame, or the reason; and whether an overhang was cut off."""
    frame = (record["width"], record["height"])
    bbox, mask = item.bbox, item.segmentation
    if image.relative:
        bbox, mask = _scaled(bbox, frame), mask and [_scaled(polygon, frame) for polygon in mask]
    # A polygon may stand out of the frame as far as it likes, if the box does not: COCO-Annotator lets people draw
    # beyond the edge and cuts the box alone.
    reason = segmentation_fault(mask, frame, math.inf) if mask else None
    if reason is None and mask and bbox is None:
        bbox = _mask_box(mask)
    reason = reason or box_fault(bbox, frame, OVERHANG)
    if reason:
        return reason, False
    box, clipped = _clip([bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3]], frame)
    width, height = box[2] - box[0], box[3] - box[1]
    annotation: dict[str, Any] = {"bbox": [*box[:2], width, height], "iscrowd": 0, **item.fields}
    if isinstance(mask, list):
        polygons, moved = zip(*(_clip(polygon, frame) for polygon in mask), strict=True)
        annotation["segmentation"] = list(polygons)
        clipped = clipped or any(moved)
    elif mask:
        annotation["segmentation"] = mask
    annotation["area"] = mask_area(annotation["segmentation"], frame) if mask else width * height
    return annotation, clipped


def _scaled(values: Any, frame: tuple[int, int]) -> Any:
    """Fractions of the image as pixels; what is no list of numbers is left for the checks."""
    if not isinstance(values, list) or not all(map(is_number, values)):
        return values
    # Rounded because 0.6460937 × 640 is meant to be 413.5, not 413.49999999999994.
    return [round(value * frame[index % 2], 6) for index, value in enumerate(values)]


def _mask_box(mask: list[list[float]] | dict[str, Any]) -> list[float]:
    if isinstance(mask, dict):
        code = mask_utils.frPyObjects(mask, *mask["size"]) if isinstance(mask["counts"], list) else mask
        return [float(value) for value in mask_utils.toBbox(code)]
    points = np.reshape([value for polygon in mask for value in polygon], (-1, 2))
    low, high = points.min(0), points.max(0)
    return [*low.tolist(), *(high - low).tolist()]


def _clip(values: list[float], frame: tuple[int, int]) -> tuple[list[float], bool]:
    """x, y, x, y, … moved into the frame, and whether that moved anything."""
    inside = [min(max(float(value), 0.0), float(frame[index % 2])) for index, value in enumerate(values)]
    return inside, any(abs(a - b) > ROUNDING for a, b in zip(inside, values, strict=True))
