"""Annotations of a rendered radiograph: parts that can be assessed, and whole implants.

An axis of a third gets an annotation only where an observer could judge it: the feature measures at least
``MIN_PIXELS`` in the image, it faces the viewer, a thread that is there makes a turn in the third (and one that is not
there no more than half a turn), and at most half of the third is covered or cut off by the frame.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from implantdet.phantom.arrays import Array
from implantdet.phantom.render import Radiograph, Shadow
from implantdet.phantom.scene import View
from implantdet.taxonomy import THIRDS

KEY = np.array([1 << 16, 1])  # one number for a point
MIN_PIXELS = 3.0
POLYGON_ERROR = 0.75  # pixels
MIN_SHARE = 0.5  # of a third that must be seen
MIN_VISIBLE = 0.05  # of an implant that must lie in the frame
MICROTHREAD_PITCH = 0.35  # mm; how fine one has to look to exclude microthreads
MOST_OF_NONE, LEAST_OF_SOME = 0.5, 1.0  # turns of a thread; a third with more and less neither lacks nor shows it
HOLE_ANGLE = np.radians(40)  # a hole that is turned further away cannot be told from none


def feature_size(shadow: Shadow, axis: str) -> float:
    """Millimetres of the detail that decides an axis (``<third>.<axis>``), 0 where it faces away or just begins."""
    line, diameter = shadow.implant.solid.line, shadow.implant.solid.diameter
    if axis in ("coronal.thread", "middle.thread"):
        length = shadow.implant.solid.length
        turns = line.turns(axis.partition(".")[0], length, diameter)
        has_none = line.attributes(length, diameter)[axis] == "none"
        return line.pitch(diameter) if (turns <= MOST_OF_NONE if has_none else turns >= LEAST_OF_SOME) else 0.0
    if axis == "coronal.microthread":
        return line.microthread[1] or MICROTHREAD_PITCH
    if axis == "apical.groove":  # a dark stripe or a notch in the flank, whichever way it faces
        return shadow.implant.solid.groove_width
    if axis == "apical.hole":
        turn = abs((shadow.implant.spin + np.pi / 2) % np.pi - np.pi / 2)
        faces = line.hole == "none" or turn < HOLE_ANGLE
        return 0.28 * diameter if faces else 0.0
    return diameter / 3  # level, body and apex are read off the outline


def annotate(radiograph: Radiograph, view: View, ids: list[int], category_ids: dict[str, int]) -> list[dict[str, Any]]:
    """COCO annotations (without ``id`` and ``image_id``) of everything that can be seen.

    Args:
        radiograph: the rendered image.
        view: its geometry.
        ids: ``implant_id`` of every shadow.
        category_ids: category name → id.
    """
    others = _overlaps(radiograph)
    annotations = []
    for shadow, implant_id in zip(radiograph.shadows, ids, strict=True):
        image, patch = shadow.window(view.size)
        framed = np.zeros_like(shadow.mask)
        framed[patch] = radiograph.inside[image]
        clear = np.zeros_like(shadow.mask)
        clear[patch] = ~radiograph.hidden[image] & (others[image] < 2)
        seen = shadow.mask & framed
        if seen.sum() < MIN_VISIBLE * shadow.mask.sum() or seen.sum() < MIN_PIXELS**2:
            continue
        solid = shadow.implant.solid
        shared = {"implant_id": implant_id, "iscrowd": 0}
        whole = {
            "category_id": category_ids[solid.line.system],
            **outline(seen, shadow.left, shadow.top),
            **shared,
            "product_line": solid.line.title,
            "axis": [[round(v, 2) for v in point] for point in end_points(shadow, view)],
            "visible_fraction": round(float((seen & clear).sum() / shadow.mask.sum()), 4),
            "mm_per_pixel": round(axis_scale(shadow, view), 7),
            "length_mm": solid.length,
            "diameter_mm": solid.diameter,
            "out_of_plane_deg": round(float(np.degrees(shadow.implant.tilt)), 2),
        }
        annotations.append(whole)
        pixel = max(view.scale)
        for index, third in enumerate(THIRDS):
            part = shadow.mask & (np.clip((shadow.height * 3).astype(np.int32), 0, 2) == index)
            if (part & framed & clear).sum() < MIN_SHARE * part.sum() or not (part & framed).any():
                continue
            place = outline(part & framed, shadow.left, shadow.top)
            for axis, value in solid.line.attributes(solid.length, solid.diameter).items():
                if axis.startswith(third + ".") and feature_size(shadow, axis) >= MIN_PIXELS * pixel:
                    annotations.append({"category_id": category_ids[f"{axis}.{value}"], **place, **shared})
    return annotations


def _overlaps(radiograph: Radiograph) -> Array:
    """[H, W] number of implants that cover each pixel."""
    height, width = radiograph.image.shape
    count = np.zeros((height, width), np.uint8)
    for shadow in radiograph.shadows:
        image, patch = shadow.window((height, width))
        count[image] += shadow.mask[patch]
    return count


def end_points(shadow: Shadow, view: View) -> tuple[tuple[float, float], tuple[float, float]]:
    """Image coordinates of the coronal and the apical end of the axis."""
    implant = shadow.implant
    apex = implant.at(implant.solid.length * float(np.cos(implant.tilt)))
    return view.project((implant.x, implant.y)), view.project(apex)


def axis_scale(shadow: Shadow, view: View) -> float:
    """Millimetres per pixel along the implant's axis (stretched images have no single scale)."""
    direction = view.matrix[:, :2] @ shadow.implant.axis
    return float(1 / np.linalg.norm(direction))


def outline(mask: Array, left: int, top: int) -> dict[str, Any]:
    """Box, area and polygons of a mask on a patch at (left, top) of the image.

    The box is the mask's own, from pixel edge to pixel edge. Polygons keep within ``POLYGON_ERROR`` of the outline:
    they stand in every annotation of a third, and exact ones would make the file three times as large.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [int(columns[0]) + left, int(rows[0]) + top, int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1]
    # Contours run through the centres of the outermost pixels; on quarter pixels that is close to their edges.
    inner = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    fine = cv2.resize(inner.astype(np.uint8), None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    polygons = []
    for contour in contours:
        points = contour[:, 0]
        simple = cv2.approxPolyDP(contour, 4 * POLYGON_ERROR, closed=True)[:, 0]
        # The edges at the extremes stay in any case: they are what the box is tight on.
        extreme = ((points == points.min(axis=0)) | (points == points.max(axis=0))).any(axis=1)
        kept = np.flatnonzero(np.isin(points @ KEY, simple @ KEY) | extreme)
        polygon = points[kept] if len(kept) > 2 else points
        polygons.append(((polygon + 0.5) / 4 + box[:2]).round(1).ravel().tolist())
    return {"bbox": box, "area": int(mask.sum()), "segmentation": polygons}
