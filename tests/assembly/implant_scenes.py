"""Tilted implants of three thirds as dataset dicts and detections: hand-made ground truth for the assembly.

Every third is a trapezium; its box is the bounding box of its four corners. The boxes of all its axes coincide.
"""

from functools import cache

import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode, Instances

from implantdet.assembly.assembler import PartAssembler
from implantdet.phantom.lines import default_lines
from implantdet.taxonomy import THIRDS, default_taxonomy

CLASSES = (*default_taxonomy().part_categories, *default_taxonomy().systems)
LINES = tuple(line for line in default_lines() if line.system != "other")


def implant(implant_id, centre, tilt, length, width=None, line=LINES[0], taper=0.2):
    """Annotations of one implant; tilt in degrees, 0 is apex down."""
    width = length / 3 if width is None else width
    down = np.array([-np.sin(np.radians(tilt)), np.cos(np.radians(tilt))])
    across = np.array([down[1], -down[0]])
    values = line.attributes(line.lengths[-1], line.diameters[0])
    annotations, corners = [], []
    for k, third in enumerate(THIRDS):
        ends = [(k / 3 - 0.5) * length, ((k + 1) / 3 - 0.5) * length]
        halves = [width / 2 * (1 - taper * j / 3) for j in (k, k + 1)]
        points = np.array(
            [np.add(centre, e * down + s * h * across) for e, h in zip(ends, halves, strict=True) for s in (-1, 1)]
        )
        corners.append(points)
        for axis, value in values.items():
            if axis.startswith(third):
                annotations.append(annotation(implant_id, f"{axis}.{value}", points))
    whole = annotation(implant_id, line.system, np.concatenate(corners)) | {"product_line": line.title}
    return [*annotations, whole]


def annotation(implant_id, name, points):
    return {
        "bbox": [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": CLASSES.index(name),
        "implant_id": implant_id,
        "iscrowd": 0,
    }


def scene(rng, image_id=0, count=None, size=500):
    """A dataset dict: a row of implants of one patient, all of one line, tilted about a common axis."""
    count = int(rng.integers(2, 6)) if count is None else count
    line = LINES[rng.integers(len(LINES))]
    lean, length = rng.uniform(-10, 10), rng.uniform(60, 110)
    annotations = []
    for k in range(count):
        centre = (70 + k * rng.uniform(0.75, 0.9) * 100, size / 2 + rng.uniform(-20, 20))
        own = length * rng.uniform(0.9, 1.1)
        shape = {"width": own * rng.uniform(0.28, 0.4), "taper": rng.uniform(0.0, 0.3)}
        annotations += implant(k, centre, lean + rng.normal(0, 5), own, line=line, **shape)
    return {"image_id": image_id, "width": size + 150, "height": size, "annotations": annotations}


def scenes(num_images, seed=0):
    rng = np.random.default_rng(seed)
    return [scene(rng, index) for index in range(num_images)]


def is_part(annotation):
    return "." in CLASSES[annotation["category_id"]]


def detections(record, keep=is_part, score=1.0):
    """A perfect detector's output for the annotations that ``keep`` accepts."""
    chosen = [annotation for annotation in record["annotations"] if keep(annotation)]
    return make_instances(
        [annotation["bbox"] for annotation in chosen],
        [score] * len(chosen),
        [annotation["category_id"] for annotation in chosen],
        (record["height"], record["width"]),
    )


def make_instances(boxes, scores, classes, image_size=(500, 650)):
    instances = Instances(image_size)
    instances.pred_boxes = Boxes(torch.tensor(np.array(boxes, np.float64).reshape(-1, 4)))
    instances.scores = torch.tensor(np.array(scores, np.float64))
    instances.pred_classes = torch.tensor(np.array(classes, np.int64).reshape(-1))
    return instances


@cache
def fitted(method="exact"):
    """An assembler that has learned from a hundred scenes."""
    return PartAssembler(CLASSES, method=method).fit(scenes(100, seed=1))


@cache
def calibrated(method="exact"):
    """The same, calibrated by a detector that misses some, strays, and finds what is not there."""
    records, rng = scenes(30, seed=4), np.random.default_rng(0)
    found = []
    for record in records:
        real = detections(record, lambda _: rng.random() > 0.1)
        corner = rng.uniform(0, 400, (4, 2))
        boxes = np.vstack([real.pred_boxes.tensor, np.hstack([corner, corner + rng.uniform(20, 60, (4, 2))])])
        boxes[: len(real)] += rng.normal(0, 1, (len(real), 4))
        scores = np.append(rng.uniform(0.5, 1, len(real)), rng.uniform(0.1, 0.6, 4))
        classes = np.append(real.pred_classes, rng.integers(0, len(CLASSES), 4))
        found.append(make_instances(boxes, scores, classes))
    return PartAssembler(CLASSES, method=method).fit(scenes(100, seed=1)).calibrate(records, found)


def groups(implants, record, keep):
    """Per implant the set of (implant_id, third) of its detections; ``keep`` as for ``detections``."""
    chosen = [annotation for annotation in record["annotations"] if keep(annotation)]
    return sorted(
        sorted(
            {
                (chosen[reading.detection]["implant_id"], part.third)
                for part in (*implant.observed, *filter(None, (implant.whole,)))
                for reading in part.readings
            }
        )
        for implant in implants
    )
