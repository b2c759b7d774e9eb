"""Compare the phantom's grey values, sizes and counts with those of real radiographs; writes phantom_statistics.json.

python benchmarks/phantom_statistics.py [--images N] [--seed S]
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import cv2
import numpy as np
from _record import write_result

from implantdet.phantom.generate import radiographs
from implantdet.phantom.presets import PRESETS, plan
from implantdet.phantom.render import Radiograph, Shadow
from implantdet.phantom.scene import View

# Measured by eye and script on small sets of real radiographs: what is compared, and the range that it lies in.
# 5–95 % ranges where the spread was measured, else a range set around the value.
REAL = {
    "periapical": {
        "grey_crown_median": ("crown 250, saturated", 240, 255),
        "grey_implant_median": ("implant 230, 5–95 %: 209–243", 209, 243),
        "grey_bone_median": ("adjacent bone 123, 5–95 %: 85–177", 85, 177),
        "grey_bone_local_std_median": ("local standard deviation of bone about 13", 9, 17),
        "height_over_width_median": ("3.0, 5–95 %: 2.3–3.8 (Bicon left out)", 2.3, 3.8),
        "box_width_percent_of_frame_median": ("about 13 % (Bicon left out)", 10.4, 15.6),
        "box_height_percent_of_frame_median": ("about 33 % (Bicon left out)", 26.4, 39.6),
        "bicon_box_width_percent_of_frame_median": ("15–20 %", 15, 20),
        "bicon_box_height_percent_of_frame_median": ("28–40 %", 28, 40),
        "implants_per_image_median": ("mostly 1–2", 1, 2),
        "implants_per_image_max": ("up to 4", 3, 4),
        "boxes_touching_frame_percent": ("about 15 %", 10, 20),
        "near_black_percent_of_turned_copies_median": ("turned copies: median 20 %", 16, 24),
        "near_black_percent_of_turned_copies_p95": ("up to 40 %", 24, 44),
    },
    "panoramic": {
        "grey_implant_median": ("170–216", 170, 216),
        "grey_bone_median": ("56–130", 56, 130),
        "length_percent_of_width_median": ("median 5.6 %, range 4.2–9.1 % (Bicon left out)", 4.2, 9.1),
        "tilt_degrees_median": ("median 7°", 5.6, 8.4),
        "tilt_degrees_p95": ("95 % under 19°", 12, 19),
        "implants_per_image_max": ("1–13", 8, 13),
    },
}
NEAR_BLACK = 16


def measure_implant(
    radiograph: Radiograph, shadow: Shadow, view: View, distance: np.ndarray
) -> dict[str, float] | None:
    """Statistics of one implant; None if little of it is in the frame."""
    size = radiograph.image.shape
    image, patch = shadow.window(size)
    mask = np.zeros(size, np.uint8)
    mask[image] = shadow.mask[patch] & radiograph.inside[image]
    if mask.sum() < 0.05 * shadow.mask.sum() or mask.sum() < 9:
        return None
    x, y, w, h = cv2.boundingRect(mask)
    touches = float(distance[mask > 0].min() < 1.5 or x == 0 or y == 0 or x + w == size[1] or y + h == size[0])
    result = {"touches": touches}
    if touches:
        return result
    metal = radiograph.image[(mask > 0) & ~radiograph.hidden]
    if len(metal) > 20:
        result["grey_implant"] = float(np.median(metal))
    axis = view.matrix[:, :2] @ shadow.implant.axis
    axis = axis / np.linalg.norm(axis)
    rows, columns = np.nonzero(mask)
    along, across = columns * axis[0] + rows * axis[1], rows * axis[0] - columns * axis[1]
    length, width = np.ptp(along) + 1, np.ptp(across) + 1
    upright = np.array([np.sin(view.frame.turn), -np.cos(view.frame.turn)])
    tilt = np.degrees(np.arccos(min(1.0, abs(float(axis @ upright)))))
    short = "bicon_" if shadow.implant.solid.line.system == "Bicon" else ""  # plateau implants are half as slender
    sizes = {
        "height_over_width": length / width,
        "box_width_percent_of_frame": 100 * w / size[1],
        "box_height_percent_of_frame": 100 * h / size[0],
        "length_percent_of_width": 100 * length / size[1],
    }
    result |= {short + key: value for key, value in sizes.items()} | {"tilt_degrees": float(tilt)}
    result |= measure_bone(radiograph, shadow, mask)
    return result


def measure_bone(radiograph: Radiograph, shadow: Shadow, mask: np.ndarray) -> dict[str, float]:
    """Grey of the bone beside the middle and apical thirds."""
    size = radiograph.image.shape
    unit = max(2, round(0.02 * shadow.mask.shape[0]))
    kernel = np.ones((2 * unit + 1, 2 * unit + 1), np.uint8)
    image, patch = shadow.window(size)
    deep = np.zeros(size, bool)
    deep[image] = (shadow.height[patch] > 0.4) & (shadow.height[patch] < 1.0)
    near = cv2.dilate(mask, kernel) > 0
    ring = (cv2.dilate(mask, kernel, iterations=4) > 0) & ~near & deep & radiograph.inside & ~radiograph.hidden
    for other in radiograph.shadows:
        window, cut = other.window(size)
        ring[window] &= ~other.mask[cut]
    values = radiograph.image[ring].astype(float)
    if len(values) < 40:
        return {}
    grey = radiograph.image.astype(np.float32)
    mean = cv2.blur(grey, (15, 15))
    deviation = np.sqrt(np.maximum(cv2.blur(grey * grey, (15, 15)) - mean * mean, 0))
    clear = ring & (cv2.erode(ring.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)
    local = cv2.erode((cv2.dilate(mask, np.ones((17, 17), np.uint8)) == 0).astype(np.uint8), None) > 0
    spots = deviation[clear & local]
    return {"grey_bone": float(np.median(values))} | (
        {"grey_bone_local_std": float(np.median(spots))} if len(spots) else {}
    )


def collect(preset: str, images: int, seed: int) -> dict[str, dict[str, list[float]]]:
    """Modality → quantity → values."""
    found: dict[str, dict[str, list[float]]] = {"periapical": defaultdict(list), "panoramic": defaultdict(list)}
    settings = PRESETS[preset]
    for job in plan(settings, images, max(5, images // 4), seed):
        for patient, view, radiograph in radiographs(job, settings, seed):
            values = found[patient.modality]
            distance = view.frame.distance(view.size)
            measured = [
                m for s in radiograph.shadows if (m := measure_implant(radiograph, s, view, distance)) is not None
            ]
            values["implants_per_image"].append(len(measured))
            for one in measured:
                for key, value in one.items():
                    values[key].append(value)
            crowns = radiograph.image[radiograph.hidden & radiograph.inside]
            if len(crowns) > 200:
                values["grey_crown"].append(float(np.median(crowns)))
            if view.frame.turn != 0:
                values["near_black_percent_of_turned_copies"].append(
                    100 * float((radiograph.image < NEAR_BLACK).mean())
                )
    return found


def summarize(values: dict[str, list[float]]) -> dict[str, float]:
    """Medians, extremes and quantiles under the names of ``REAL``."""
    result = {}
    for key, sample in values.items():
        if key == "touches":
            result["boxes_touching_frame_percent"] = 100 * float(np.mean(sample))
            continue
        p5, median, p95 = np.percentile(sample, [5, 50, 95])
        result |= {
            f"{key}_p5": float(p5),
            f"{key}_median": float(median),
            f"{key}_p95": float(p95),
            f"{key}_max": float(max(sample)),
        }
    return {key: round(value, 2) for key, value in result.items()}


def main() -> None:
    """Measure, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=600, help="periapical and small images of preset idd")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    idd, wide = collect("idd", args.images, args.seed), collect("panoramic", args.images // 8, args.seed)
    summaries = {"periapical": summarize(idd["periapical"]), "panoramic": summarize(wide["panoramic"])}
    table = []
    for modality, rows in REAL.items():
        for key, (text, low, high) in rows.items():
            value = summaries[modality][key]
            row = {
                "modality": modality,
                "quantity": key,
                "phantom": value,
                "real": text,
                "low": low,
                "high": high,
                "inside": low <= value <= high,
            }
            table.append(row)
            print(f"{'ok ' if row['inside'] else 'OUT'} {modality:10} {key:45} {value:8.2f}   {text}")
    write_result("phantom_statistics", {"images": args.images, "seed": args.seed, "table": table, "all": summaries})


if __name__ == "__main__":
    main()
