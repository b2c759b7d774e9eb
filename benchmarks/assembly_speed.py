"""Milliseconds that the assembly takes per image, on one core.

    OMP_NUM_THREADS=1 python benchmarks/assembly_speed.py [--run OUTPUT_DIR --data DIR]

Simulated rows of implants, every third with its usual readings: 1 to 6 implants, and 50 implants whose 150 thirds
stand among 150 false ones; and layouts that are made to be hard: 300 thirds on a lattice, where each fits to many, and
300 in one place. With a finished training and its dataset folder, also what its detector found in the test
images of 1 to 6 implants. Times are CPU seconds of the process, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _detections import instances_of as instances_of_results
from _record import write_result
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from numpy.typing import NDArray

from implantdet.assembly.assembler import PartAssembler
from implantdet.assembly.known import known_implants
from implantdet.data.register import register_idd
from implantdet.phantom.lines import default_lines
from implantdet.taxonomy import THIRDS, default_taxonomy

CLASSES = (*default_taxonomy().part_categories, *default_taxonomy().systems)
REPEATS = 3


def thirds_of(centre: NDArray[np.float64], tilt: float, length: float, width: float) -> NDArray[np.float64]:
    """[3, 4] boxes of a tilted rectangle's thirds."""
    down = np.array([-np.sin(tilt), np.cos(tilt)])
    half = (np.abs(down) * length / 3 + np.abs(down[::-1]) * width) / 2
    middles = centre + np.outer([-length / 3, 0, length / 3], down)
    return np.hstack([middles - half, middles + half])


def scene(rng: np.random.Generator, count: int, num_false: int = 0, per_row: int = 10) -> dict[str, Any]:
    """A dataset dict: implants in rows, false thirds (without ``implant_id``) between them."""
    annotations = []
    lean = rng.uniform(-0.15, 0.15)
    for number in range(count):
        centre = np.array([80.0 * (number % per_row) + 60, 160.0 * (number // per_row) + 90]) + rng.uniform(-8, 8, 2)
        boxes = thirds_of(centre, lean + rng.normal(0, 0.08), rng.uniform(95, 115), rng.uniform(30, 40))
        annotations += [a for k in range(3) for a in readings(rng, boxes[k], THIRDS[k], {"implant_id": number})]
    size = np.array([80 * min(count, per_row) + 100, 160 * (1 + (count - 1) // per_row) + 60])
    for _ in range(num_false):
        corner, side = rng.uniform(0, size - 60), rng.uniform(25, 50, 2)
        annotations += readings(rng, np.r_[corner, corner + side], THIRDS[rng.integers(3)], {})
    return {"height": int(size[1]), "width": int(size[0]), "annotations": annotations}


def lattice(rng: np.random.Generator, count: int, pitch: float, per_row: int = 20) -> dict[str, Any]:
    """A dataset dict without implants: thirds of all kinds in rows, ``pitch`` sides apart; with 0 all in one place."""
    annotations = []
    for number in range(count):
        corner = 100 + 30 * pitch * np.array([number % per_row, number // per_row]) + rng.uniform(-4, 4, 2)
        annotations += readings(rng, np.r_[corner, corner + 30], THIRDS[number % 3], {})
    return {"height": 1000, "width": 1000, "annotations": annotations}


def readings(
    rng: np.random.Generator, box: NDArray[np.float64], third: str, extra: dict[str, Any]
) -> list[dict[str, Any]]:
    """Annotations of all axes of one third."""
    line = default_lines()[rng.integers(len(default_lines()))]
    attributes = line.attributes(line.lengths[0], line.diameters[0])
    names = [f"{axis}.{value}" for axis, value in attributes.items() if axis.startswith(third)]
    common = {"bbox": box.tolist(), "bbox_mode": BoxMode.XYXY_ABS, **extra}
    return [{"category_id": CLASSES.index(name), **common} for name in names]


def instances_of(record: dict[str, Any], rng: np.random.Generator) -> Instances:
    """Detections of all annotations."""
    annotations = record["annotations"]
    instances = Instances((record["height"], record["width"]))
    instances.pred_boxes = Boxes(torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32))
    instances.scores = torch.from_numpy(rng.uniform(0.4, 1.0, len(annotations)).astype(np.float32))
    instances.pred_classes = torch.tensor([a["category_id"] for a in annotations])
    return instances


def detected(run: Path, data: Path) -> tuple[PartAssembler, dict[int, list[Instances]]]:
    """A training's assembler, and by their number of implants what its detector found in the test images."""
    register_idd(data, data.name)
    records, metadata = DatasetCatalog.get(f"{data.name}_test"), MetadataCatalog.get(f"{data.name}_test")
    assembler = PartAssembler(metadata.thing_classes).load(run / "assembler.json")
    found = json.loads((run / f"{data.name}_test" / "coco_instances_results.json").read_text(encoding="utf-8"))
    by_count: dict[int, list[Instances]] = {}
    for record, instances in zip(records, instances_of_results(records, found), strict=True):
        by_count.setdefault(len(known_implants(record, assembler.meanings)), []).append(instances)
    return assembler, by_count


def milliseconds(assembler: PartAssembler, images: Sequence[Instances]) -> dict[str, float]:
    """Median and largest of the best of ``REPEATS`` runs per image."""
    best = []
    for instances in images:
        times = []
        for _ in range(REPEATS):
            start = time.process_time()
            assembler.assemble(instances)
            times.append(1000 * (time.process_time() - start))
        best.append(min(times))
    return {"median_ms": float(np.median(best)), "max_ms": float(np.max(best)), "images": len(images)}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="OUTPUT_DIR of a training that ended with its second stage")
    parser.add_argument("--data", type=Path, help="its dataset folder")
    args = parser.parse_args()
    if (args.run is None) != (args.data is None):
        parser.error("--run and --data belong together")
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    assembler = PartAssembler(CLASSES).fit([scene(rng, 5) for _ in range(50)])
    payload: dict[str, Any] = {"seed": 0, "repeats": REPEATS, "clock": "process CPU time"}
    for count in range(1, 7):
        images = [instances_of(scene(rng, count), rng) for _ in range(40)]
        payload[f"{count} implants"] = milliseconds(assembler, images)
    if args.run:
        trained, by_count = detected(args.run, args.data)
        for count in range(1, 7):
            payload[f"{count} implants, as detected"] = milliseconds(trained, by_count[count])
        every = [instances for count in range(1, 7) for instances in by_count[count]]
        payload["1 to 6 implants, as detected"] = milliseconds(trained, every) | {
            "median_detections": float(np.median([len(instances) for instances in every]))
        }
    crowd = [instances_of(scene(rng, 50, num_false=150), rng) for _ in range(10)]
    payload["50 implants, 300 candidate parts"] = milliseconds(assembler, crowd)
    for name, pitch in (("on a lattice", 0.8), ("in one place", 0.0)):
        crowd = [instances_of(lattice(rng, 300, pitch), rng) for _ in range(10)]
        payload[f"300 thirds {name}, no implant"] = milliseconds(assembler, crowd)
    for name, row in payload.items():
        if isinstance(row, dict):
            print(f"{name}: median {row['median_ms']:.2f} ms, largest {row['max_ms']:.2f} ms")
    write_result("assembly_speed", payload)


if __name__ == "__main__":
    main()
