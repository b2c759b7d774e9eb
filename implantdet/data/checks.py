"""What makes one image record or one annotation unusable: pure functions that return the reason, or None.

Importers and :func:`implantdet.data.idd.load_idd` use the same ones, so what is imported can be loaded.
"""

from __future__ import annotations

import sys
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

PANORAMIC, PERIAPICAL = MODALITIES = ("panoramic", "periapical")
MEASURES = ("mm_per_pixel", "length_mm", "diameter_mm", "out_of_plane_deg")  # of an annotated whole implant
# Exports round boxes to whole or relative numbers, so that they overhang the frame by a hair.
# Up to one pixel is cut off and counted; more is an error.
OVERHANG = 1.0
ROUNDING = 1e-3  # pixels; floats that came from relative coordinates are off by less


def escapes(name: str) -> str | None:
    """Why ``name`` is no path below a folder: absolute on any system, or with ``..``."""
    windows = PureWindowsPath(name)
    if PurePosixPath(name).is_absolute() or windows.is_absolute() or windows.drive or windows.root:
        return f"path {name!r} is absolute; expected a path relative to the folder"
    return f"path {name!r} leaves its folder" if ".." in windows.parts else None


def is_number(value: object) -> bool:
    """True for an int or float that is finite as a float: JSON holds whole numbers that are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _are_numbers(values: list[Any]) -> bool:
    """As ``is_number`` of all, at once: masks have many of them."""
    if not set(map(type, values)) <= {int, float}:  # numbers of NumPy among them, or none
        return all(map(is_number, values))
    try:
        return bool(np.isfinite(np.array(values, np.float64)).all())
    except OverflowError:
        return False


def image_fault(image: dict[str, Any]) -> str | None:
    """Why an image record breaks the format: size, or an optional field of the wrong kind."""
    for key in ("width", "height"):
        if not isinstance(image.get(key), int) or not is_number(image[key]) or image[key] < 1:
            return f"'{key}' must be a whole number of pixels, 1 or more; found {image.get(key)!r}"
    for key in ("patient_id", "source_id", "split"):
        if key in image and not (isinstance(image[key], str) and image[key]):
            return f"'{key}' must be a text that is not empty; found {image[key]!r}"
    if "modality" in image and image["modality"] not in MODALITIES:
        return f"'modality' must be one of {', '.join(MODALITIES)}; found {image['modality']!r}"
    if "mm_per_pixel" in image and not (is_number(image["mm_per_pixel"]) and image["mm_per_pixel"] > 0):
        return f"'mm_per_pixel' must be a number above 0; found {image['mm_per_pixel']!r}"
    return _matrix_fault(image.get("mm_per_pixel_matrix", [[1, 0], [0, 1]]))


def _matrix_fault(matrix: Any) -> str | None:
    shaped = isinstance(matrix, list) and len(matrix) == 2 and all(isinstance(r, list) and len(r) == 2 for r in matrix)
    if shaped and all(is_number(value) for row in matrix for value in row):
        (a, b), (c, d) = matrix
        if a * d != b * c:
            return None
    return f"'mm_per_pixel_matrix' must be [[a, b], [c, d]] of an area that is not 0; found {shortened(matrix)}"


def annotation_fault(annotation: dict[str, Any], image: dict[str, Any]) -> str | None:
    """Why an annotation breaks the format: box, mask, or an optional field of the wrong kind."""
    frame = (image["width"], image["height"])
    reason = box_fault(annotation.get("bbox"), frame, ROUNDING)
    if reason is None and "segmentation" in annotation:
        reason = segmentation_fault(annotation["segmentation"], frame, ROUNDING)
    if reason is None and not (is_number(annotation.get("area")) and annotation["area"] > 0):
        reason = f"'area' must be a number above 0; found {annotation.get('area')!r}"
    if reason is None and annotation.get("iscrowd", 0) != 0:
        reason = "'iscrowd' must be 0: implants are annotated one by one"
    return reason or _implant_fault(annotation)


def _implant_fault(annotation: dict[str, Any]) -> str | None:
    value = annotation.get("implant_id", 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return f"'implant_id' must be a whole number, 0 or more; found {value!r}"
    if not isinstance(annotation.get("product_line", ""), str):
        return f"'product_line' must be a text; found {annotation['product_line']!r}"
    value = annotation.get("visible_fraction", 1)
    if not (is_number(value) and 0 <= value <= 1):
        return f"'visible_fraction' must be a number from 0 to 1; found {value!r}"
    for key in MEASURES:
        if not is_number(annotation.get(key, 0)):
            return f"'{key}' must be a number; found {annotation[key]!r}"
    axis = annotation.get("axis", [[0, 0], [0, 0]])
    shaped = isinstance(axis, list) and len(axis) == 2 and all(isinstance(end, list) and len(end) == 2 for end in axis)
    if not (shaped and all(is_number(value) for end in axis for value in end)):
        return f"'axis' must be [[x, y], [x, y]], coronal end first; found {axis!r}"
    return None


def box_fault(bbox: object, frame: tuple[int, int], overhang: float) -> str | None:
    """Why ``bbox`` is no box with an area inside a frame of (width, height).

    Args:
        bbox: meant to be ``[x, y, w, h]`` in pixels.
        frame: (width, height) of the image in pixels.
        overhang: pixels by which the box may stand out of the frame.
    """
    if not isinstance(bbox, (list, tuple)) or len(bbox) != 4 or not all(is_number(value) for value in bbox):
        return f"'bbox' must be four finite numbers [x, y, w, h]; found {shortened(bbox)}"
    x, y, w, h = bbox
    if w <= 0 or h <= 0:
        return f"box without area: {shortened(bbox)}"
    width, height = frame
    if min(x, y) < -overhang or x + w > width + overhang or y + h > height + overhang:
        return f"box outside the frame of {width}×{height}: {shortened(bbox)}"
    if min(x + w, y + h) <= 0 or x >= width or y >= height:
        return f"box without area inside the frame of {width}×{height}: {shortened(bbox)}"
    return None


def segmentation_fault(segmentation: object, frame: tuple[int, int], overhang: float) -> str | None:
    """Why ``segmentation`` is neither a list of polygons inside the frame nor a run-length code of its size."""
    width, height = frame
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width]:
            return f"mask size {segmentation.get('size')!r} differs from the image's [{height}, {width}]"
        try:
            area = mask_area(segmentation, frame)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            return f"mask cannot be decoded: {error!r}"
        return None if area > 0 else "mask without area"
    if not isinstance(segmentation, list) or not segmentation:
        return f"'segmentation' must be polygons or a run-length code; found {shortened(segmentation)}"
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not _are_numbers(polygon):
            return f"a polygon must be 3 or more pairs of finite numbers; found {shortened(polygon)}"
        points = np.reshape(polygon, (-1, 2))
        low, high = points.min(0), points.max(0)
        if (low < -overhang).any() or (high > np.add(frame, overhang)).any():
            return f"polygon outside the frame of {width}×{height}: from {low.tolist()} to {high.tolist()}"
        if (high <= low).any():
            return f"polygon without area: {shortened(polygon)}"
    return None


def mask_area(segmentation: list[list[float]] | dict[str, Any], frame: tuple[int, int]) -> float:
    """Area of a mask in pixels.

    Raises:
        ValueError: the run lengths do not add up to the frame.
    """
    width, height = frame
    if isinstance(segmentation, list):
        return float(sum(_shoelace(np.reshape(polygon, (-1, 2))) for polygon in segmentation))
    counts = segmentation["counts"]
    counts = np.asarray(counts if isinstance(counts, list) else run_lengths(counts))
    # pycocotools trusts the lengths: where they fall short, its mask is whatever the memory held.
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or (counts < 0).any() or counts.sum() != width * height:
        raise ValueError(f"run lengths must be whole numbers that add up to {width * height}")
    return float(counts[1::2].sum())


def run_lengths(code: str | bytes) -> list[int]:
    """Run lengths of COCO's compressed code: 5 bits per character, differences from the last but one.

    Raises:
        ValueError: a character that the code does not have, or it ends within a number.
    """
    lengths: list[int] = []
    value = shift = 0
    for byte in code if isinstance(code, bytes) else code.encode("ascii"):
        bits = byte - 48
        if not 0 <= bits < 64:
            raise ValueError(f"a run-length code has no character {chr(byte)!r}")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift  # negative
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("the run-length code ends within a number")
    return lengths


def _shoelace(points: np.ndarray) -> float:
    x, y = points.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def shortened(value: object) -> str:
    """``repr(value)``, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
