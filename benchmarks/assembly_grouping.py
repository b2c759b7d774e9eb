"""Grouping of ground-truth parts into implants: the exact method beside the two k-means modes.

    python benchmarks/assembly_grouping.py --dataset DIR --panoramic DIR

Learns on the training images of fold 0 and groups the parts of the test images, of the panoramics those that are
crowded: with ``CROWDED`` implants or more. An implant counts as grouped exactly
if one predicted implant holds its parts and no other. Every condition disturbs thirds, with all their readings at
once: a false positive looks as well supported as a real third. How many systems are named rightly where every design is
read rightly, is counted, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import write_result
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray
from tqdm import tqdm

from implantdet.assembly.assembler import METHODS, PartAssembler
from implantdet.assembly.geometry import iou
from implantdet.assembly.known import KnownImplant, known_implants
from implantdet.data.register import register_idd
from implantdet.evaluation.implant_matching import ImageOutcome, top_system
from implantdet.structures import Box, Implant
from implantdet.taxonomy import THIRDS

MISSING, FALSE = 0.15, 0.2  # share of thirds taken away; false thirds per third
CROWDED = 6  # implants
Third = tuple[int | None, str, Box, dict[str, str]]  # implant (None: false positive), third, box, axis → value


def thirds_of(known: Sequence[KnownImplant]) -> list[Third]:
    """Every annotated third of an image."""
    return [
        (number, third, implant.boxes[third], {a: v for a, v in implant.values.items() if a.startswith(third)})
        for number, implant in enumerate(known)
        for third in THIRDS
        if third in implant.boxes
    ]


def clean(thirds: list[Third], size: tuple[int, int], rng: np.random.Generator) -> list[Third]:
    """As annotated."""
    return thirds


def missing(thirds: list[Third], size: tuple[int, int], rng: np.random.Generator) -> list[Third]:
    """Without ``MISSING`` of the thirds."""
    return [third for third in thirds if rng.random() >= MISSING]


def one_missing(thirds: list[Third], size: tuple[int, int], rng: np.random.Generator) -> list[Third]:
    """Without one third of every implant that has all three."""
    numbers = [third[0] for third in thirds]
    lost = {number: rng.choice(THIRDS) for number in sorted(set(numbers)) if numbers.count(number) == len(THIRDS)}
    return [third for third in thirds if lost.get(third[0]) != third[1]]


def false_positives(thirds: list[Third], size: tuple[int, int], rng: np.random.Generator) -> list[Third]:
    """With ``FALSE`` as many false thirds: copies of real ones, resized by up to a third, anywhere in the image."""
    if not thirds:
        return thirds
    extra: list[Third] = []
    for _ in range(rng.binomial(len(thirds), FALSE)):
        _, third, (x0, y0, x1, y1), values = thirds[rng.integers(len(thirds))]
        width, height = (np.array([x1 - x0, y1 - y0]) * np.exp(rng.uniform(-0.3, 0.3, 2))).tolist()
        x, y = rng.uniform(0, np.maximum(np.array(size) - (width, height), 1)).tolist()
        extra.append((None, third, (x, y, x + width, y + height), values))
    return thirds + extra


CONDITIONS: dict[str, Callable[..., list[Third]]] = {
    "clean": clean,
    "15 % missing": missing,
    "one third missing": one_missing,
    "false positives": false_positives,
}


def instances_of(thirds: Sequence[Third], classes: Sequence[str], size: tuple[int, int]) -> tuple[Instances, list[int]]:
    """Detections of score 1, and for every detection the index of its third."""
    rows = [
        (index, classes.index(f"{axis}.{value}"), box)
        for index, (_, _, box, values) in enumerate(thirds)
        for axis, value in values.items()
    ]
    instances = Instances(size[::-1])
    instances.pred_boxes = Boxes(torch.tensor([box for *_, box in rows], dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.ones(len(rows))
    instances.pred_classes = torch.tensor([kind for _, kind, _ in rows], dtype=torch.int64)
    return instances, [index for index, *_ in rows]


def overlaps(box: Box, others: Sequence[Box]) -> NDArray[np.float64]:
    """[n] intersections over union with n boxes."""
    return iou(np.array(box), np.array(others).reshape(-1, 4))


def compare(
    implants: Sequence[Implant], thirds: Sequence[Third], owner: Sequence[int], known: Sequence[KnownImplant]
) -> list[tuple[bool, float]]:
    """For every known implant that has a third left: whether it is grouped exactly, and the overlap of its box."""
    wanted: dict[int, set[int]] = {}
    for index, (number, *_) in enumerate(thirds):
        if number is not None:
            wanted.setdefault(number, set()).add(index)
    # The rivals of a reading are detections that the part has swallowed.
    got = [
        ({owner[r.detection] for part in implant.observed for r in (*part.readings, *part.rivals)}, implant.box)
        for implant in implants
    ]
    return [
        (
            any(group == members for members, _ in got),
            overlaps(known[number].box, [box for _, box in got]).max(initial=0),
        )
        for number, group in wanted.items()
    ]


def measure(
    assembler: PartAssembler, records: Sequence[dict[str, Any]], change: Callable[..., list[Third]], seed: int
) -> dict[str, float]:
    """Exact-grouping rate and median IoU of implant boxes over the images."""
    outcomes: list[tuple[bool, float]] = []
    rng = np.random.default_rng(seed)
    for record in records:
        known = known_implants(record, assembler.meanings)
        size = (record["width"], record["height"])
        thirds = change(thirds_of(known), size, rng)
        instances, owner = instances_of(thirds, assembler.thing_classes, size)
        outcomes += compare(assembler.assemble(instances), thirds, owner, known)
    exact, overlap = np.array(outcomes, float).T
    return {"exact": float(exact.mean()), "median_iou": float(np.median(overlap)), "implants": len(outcomes)}


def named(assembler: PartAssembler, records: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Of every system, how many found implants there are and how many have it first, from true parts."""
    counts: dict[str, dict[str, int]] = {}
    for record in records:
        known = known_implants(record, assembler.meanings)
        size = (record["width"], record["height"])
        instances, _ = instances_of(thirds_of(known), assembler.thing_classes, size)
        outcome = ImageOutcome(record["image_id"], size, assembler.explain(instances), tuple(known))
        for implant, truth in outcome.matched:
            if truth.system is not None:
                of_system = counts.setdefault(truth.system, {"implants": 0, "right": 0})
                of_system["implants"] += 1
                of_system["right"] += top_system(implant) == truth.system
    return dict(sorted(counts.items()))


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, type=Path, help="dataset folder with implant_id")
    parser.add_argument("--panoramic", type=Path, help="dataset folder of panoramics, some of them crowded")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    payload: dict[str, Any] = {"seed": args.seed, "missing": MISSING, "false": FALSE, "datasets": {}}
    for label, root, at_least in (("dataset", args.dataset, 0), ("panoramic", args.panoramic, CROWDED)):
        if root is None:
            continue
        register_idd(root, label)
        training, test = (DatasetCatalog.get(f"{label}_{part}") for part in ("train_fold0", "test"))
        classes = MetadataCatalog.get(f"{label}_test").thing_classes
        meaning = PartAssembler(classes).meanings
        test = [record for record in test if len(known_implants(record, meaning)) >= at_least]
        if not test:
            raise SystemExit(f"{root}: no test image shows {at_least} implants or more")
        table: dict[str, dict[str, dict[str, float]]] = {}
        for method in METHODS:
            assembler = PartAssembler(classes, method=method).fit(training)
            table[method] = {
                name: measure(assembler, test, change, args.seed)
                for name, change in tqdm(CONDITIONS.items(), desc=method)
            }
        payload["datasets"][label] = {
            "root": root.name,
            "images": len(test),
            "min_implants": at_least,
            "methods": table,
            "systems": named(PartAssembler(classes).fit(training), test),
        }
        for method, row in table.items():
            cells = ", ".join(
                f"{name}: {cell['exact']:.3f} (IoU {cell['median_iou']:.3f})" for name, cell in row.items()
            )
            print(f"{label} {method}: {cells}")
    write_result("assembly_grouping", payload)


if __name__ == "__main__":
    main()
