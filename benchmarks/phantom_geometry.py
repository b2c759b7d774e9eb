"""Check the phantom's shadows, boxes and millimetres against voxels; writes phantom_geometry.json.

Each of 50 random implants is filled with voxels of 0.05 mm by its definition. Rays are marched through the voxels for
3 × 3 points of every image pixel, in a plain loop that shares no code with implantdet.phantom.projection.

    python benchmarks/phantom_geometry.py [--implants N] [--seed S]
"""

from __future__ import annotations

import argparse

import numpy as np
from _record import write_result
from pycocotools import mask as coco_mask
from tqdm import tqdm

from implantdet.phantom.canvas import Canvas
from implantdet.phantom.labels import annotate
from implantdet.phantom.lines import default_lines
from implantdet.phantom.periapical import sample_solid, sample_view
from implantdet.phantom.render import render
from implantdet.phantom.scene import Patient, PlacedImplant, View
from implantdet.phantom.solid import Solid
from implantdet.taxonomy import default_taxonomy

VOXEL = 0.05  # mm
TOUCH = 0.12  # mm of metal that make a shadow


def voxelize(solid: Solid) -> tuple[np.ndarray, float]:
    """[z, y, x] bool, and the millimetres of the first voxel's centre in x and y."""
    reach = np.ceil(solid.max_radius / VOXEL) * VOXEL + VOXEL
    across = np.arange(-reach, reach + VOXEL / 2, VOXEL)
    heights = (np.arange(int(np.ceil(solid.length / VOXEL))) + 0.5) * VOXEL
    x, y = across[None, None, :], across[None, :, None]
    return np.hypot(x, y) < solid.radius(heights[:, None, None], np.arctan2(y, x)), float(across[0])


def march(implant: PlacedImplant, view: View) -> np.ndarray:
    """[H, W] bool: pixels of which at least half lies in the shadow of the voxels."""
    voxels, first = voxelize(implant.solid)
    height, width = view.size
    inverse = np.linalg.inv(np.vstack([view.matrix, [0, 0, 1]]))
    angle, tilt, spin = implant.angle, implant.tilt, implant.spin
    hits = np.zeros((height, width))
    for fraction_y in (1 / 6, 3 / 6, 5 / 6):
        for fraction_x in (1 / 6, 3 / 6, 5 / 6):
            column, row = np.meshgrid(np.arange(width) + fraction_x, np.arange(height) + fraction_y)
            jaw_x = inverse[0, 0] * column + inverse[0, 1] * row + inverse[0, 2] - implant.x
            jaw_y = inverse[1, 0] * column + inverse[1, 1] * row + inverse[1, 2] - implant.y
            along = jaw_x * np.sin(angle) + jaw_y * np.cos(angle)
            across = jaw_y * np.sin(angle) - jaw_x * np.cos(angle)  # right-handed with depth and axis
            reach = implant.solid.max_radius + 0.2
            near = (np.abs(across) < reach) & (along > -1.5) & (along < implant.solid.length + 1.5)
            hits[near] += _path(voxels, first, across[near], along[near], tilt, spin) > TOUCH
    return hits >= 4.5


def _path(
    voxels: np.ndarray, first: float, across: np.ndarray, along: np.ndarray, tilt: float, spin: float
) -> np.ndarray:
    path = np.zeros(across.shape)
    crossing = along * np.tan(tilt)  # where each ray passes the implant's axis
    for offset in np.arange(-4, 4, VOXEL):
        t = crossing + offset
        depth, z = t * np.cos(tilt) - along * np.sin(tilt), along * np.cos(tilt) + t * np.sin(tilt)
        x, y = across * np.cos(spin) + depth * np.sin(spin), depth * np.cos(spin) - across * np.sin(spin)
        k = np.floor(z / VOXEL).astype(int)
        j, i = np.round((y - first) / VOXEL).astype(int), np.round((x - first) / VOXEL).astype(int)
        valid = (k >= 0) & (k < voxels.shape[0]) & (np.minimum(i, j) >= 0) & (np.maximum(i, j) < voxels.shape[1])
        path[valid] += voxels[k[valid], j[valid], i[valid]] * VOXEL
    return path


def check(number: int, seed: int) -> dict[str, float | str]:
    """One random implant in one random view."""
    rng = np.random.default_rng([seed, number])
    lines = default_lines()
    solid = sample_solid(rng, lines[number % len(lines)])
    tilt, angle, spin = rng.uniform(-0.25, 0.25), rng.normal(0, 0.15), rng.uniform(-np.pi, np.pi)
    canvas = Canvas(0.0, -18.0, 66.0, 50.0, 0.5)
    canvas.tissue += np.float32(0.9)
    implant = PlacedImplant(solid, 33.0, 0.0, float(angle), float(tilt), float(spin), 0.5)
    patient = Patient("periapical", canvas, (implant,), bool(rng.random() < 0.5), 0.9)
    view = sample_view(rng, patient, 416)
    radiograph = render(patient, view, rng)
    truth = march(implant.leaning(view.tilt, view.spin), view)
    mask = np.zeros(view.size, bool)
    image, patch = radiograph.shadows[0].window(view.size)
    mask[image] = radiograph.shadows[0].mask[patch]
    ids = {category["name"]: category["id"] for category in default_taxonomy().coco_categories()}
    annotations = annotate(radiograph, view, [1], ids)
    record = annotations[0]
    coronal, apical = np.array(record["axis"])
    true_length = solid.length * np.cos(implant.tilt + view.tilt)
    scale = np.linalg.inv(view.matrix[:, :2])
    return {
        "line": solid.line.title,
        "iou": round(float((mask & truth).sum() / (mask | truth).sum()), 4),
        "box_error_pixels": max(box_error(annotation, view.size) for annotation in annotations),
        "box_against_voxels_pixels": box_difference(record["bbox"], truth & radiograph.inside),
        "length_error_percent": round(
            100 * abs(float(np.linalg.norm(scale @ (apical - coronal)) / true_length) - 1), 4
        ),
        "axis_scale_error_percent": round(
            100 * abs(float(np.linalg.norm(apical - coronal)) * record["mm_per_pixel"] / true_length - 1), 4
        ),
        "area_error_percent": round(100 * abs(float(mask.sum() / truth.sum()) - 1), 3),
    }


def box_error(annotation: dict, size: tuple[int, int]) -> float:
    """Largest distance between a side of the box and the annotation's own mask, in pixels."""
    decoded = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], *size)))
    return box_difference(annotation["bbox"], decoded > 0)


def box_difference(bbox: list[int], mask: np.ndarray) -> float:
    """Largest distance between a side of the box and a mask, in pixels."""
    rows, columns = np.nonzero(mask)
    x, y, w, h = bbox
    tight = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return float(np.abs(np.subtract((x, y, x + w, y + h), tight)).max())


def main() -> None:
    """Check, summarize, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--implants", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    results = [check(number, args.seed) for number in tqdm(range(args.implants), unit=" implants")]

    def worst(key: str, pick: object = max) -> float:
        return pick(result[key] for result in results)

    summary = {
        "implants": args.implants,
        "iou_min": worst("iou", min),
        "iou_mean": round(float(np.mean([result["iou"] for result in results])), 4),
        "box_error_pixels_max": worst("box_error_pixels"),
        "box_against_voxels_pixels_max": worst("box_against_voxels_pixels"),
        "length_error_percent_max": worst("length_error_percent"),
        "axis_scale_error_percent_max": worst("axis_scale_error_percent"),
        "area_error_percent_max": worst("area_error_percent"),
    }
    summary["holds"] = (
        summary["iou_min"] >= 0.97 and summary["box_error_pixels_max"] <= 1 and summary["length_error_percent_max"] <= 1
    )
    print(summary)
    write_result("phantom_geometry", {"seed": args.seed, "summary": summary, "results": results})


if __name__ == "__main__":
    main()
