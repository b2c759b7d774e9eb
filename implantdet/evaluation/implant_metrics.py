"""Implants as COCO's metrics see them, before and after the second stage; grouping; inferred thirds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.structures import Instances
from torchvision.ops import nms

from implantdet.assembly.calibrating import MATCH_IOU, TWO_SIDED_95, match
from implantdet.assembly.gather import Meaning, usable
from implantdet.evaluation.coco_metrics import coco_metrics
from implantdet.evaluation.detection_calibration import detection_calibration
from implantdet.evaluation.implant_matching import CONFIDENT, ImageOutcome
from implantdet.structures import Assembly, Box
from implantdet.taxonomy import SYSTEM, THIRDS

ANY = ""  # the one class of class-agnostic metrics, which no system can be called


class Scored(NamedTuple):
    """A box that is said to be an implant of a system (or of ``ANY``)."""

    box: Box
    score: float
    label: str


def stage1_boxes(instances: Instances, meanings: Sequence[Meaning | None]) -> list[Scored]:
    """Whole implants as the detector itself finds them, once by system and once as ``ANY``.

    Without their class, boxes of several systems on one implant are one detection: the best scored of those that
    overlap with an IoU above 0.5.
    """
    detections = usable(instances, meanings)
    named = [
        Scored((box[0], box[1], box[2], box[3]), score, meaning.value)
        for box, score, kind in zip(
            detections.boxes.tolist(), detections.scores.tolist(), detections.classes.tolist(), strict=True
        )
        if (meaning := meanings[kind]) is not None and meaning.slot == SYSTEM
    ]
    boxes = torch.tensor([item.box for item in named], dtype=torch.float64).reshape(-1, 4)
    kept = nms(boxes, torch.tensor([item.score for item in named], dtype=torch.float64), MATCH_IOU)
    return named + [named[k]._replace(label=ANY) for k in kept.tolist()]


def stage2_boxes(assembly: Assembly) -> list[Scored]:
    """Assembled implants, by system with score times the system's probability, and as ``ANY``."""
    found = []
    for implant in assembly.implants:
        found.append(Scored(implant.box, implant.score, ANY))
        for system in implant.ranking.systems if implant.ranking else ():
            found.append(Scored(implant.box, implant.score * system.probability, system.name))
    return found


def implant_metrics(
    outcomes: Sequence[ImageOutcome], boxes: Mapping[int, Sequence[Scored]], systems: Sequence[str]
) -> dict[str, Any]:
    """COCO's metrics of implants.

    Args:
        outcomes: give the true implants; their size is that of their box.
        boxes: image id → what was found there.
        systems: classes of whole implants; none if the detector has none.

    Returns:
        ``by_system`` (the mean over systems, with ``per_class``; None without systems) and ``any_system``: what
        ``coco_metrics`` returns, in percent, and ``D-ECE``, for which a box counts once, by its best name.
    """
    return {
        "by_system": _metrics(outcomes, boxes, systems) if systems else None,
        "any_system": _metrics(outcomes, boxes, (ANY,)),
    }


def _metrics(
    outcomes: Sequence[ImageOutcome], boxes: Mapping[int, Sequence[Scored]], labels: Sequence[str]
) -> dict[str, Any]:
    ids = {label: index for index, label in enumerate(labels, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    best: list[dict[str, Any]] = []  # of every box; the many systems that an implant hardly is would drown the rest
    for outcome in outcomes:
        images.append({"id": outcome.image_id, "width": outcome.size[0], "height": outcome.size[1]})
        for implant in outcome.truth:
            label = ANY if ANY in ids else implant.system
            # An implant whose system is not annotated is neither there nor false: a crowd of every system.
            for name in [label] if label in ids else labels:
                box = _xywh(implant.box)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": outcome.image_id,
                        "category_id": ids[name],
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": int(label not in ids),
                    }
                )
        by_box: dict[Box, dict[str, Any]] = {}
        for item in boxes.get(outcome.image_id, ()):
            if item.label in ids:
                record = {"image_id": outcome.image_id, "category_id": ids[item.label], "bbox": _xywh(item.box)}
                record["score"] = item.score
                detections.append(record)
                if item.score > by_box.setdefault(item.box, record)["score"]:
                    by_box[item.box] = record
        best += by_box.values()
    categories = [{"id": index, "name": label or "implant"} for label, index in ids.items()]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    return coco_metrics(truth, detections) | {"D-ECE": detection_calibration(truth, best)}


def _xywh(box: Box) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def part_metrics(per_class: Mapping[str, Mapping[str, float | None]], parts: Sequence[str]) -> dict[str, float]:
    """COCO's metrics of the part categories alone: the detector's own mean counts systems among them.

    Args:
        per_class: of ``coco_metrics``, None or NaN where nothing could be computed.
        parts: names of the categories to average.

    Returns:
        ``AP, AP50, AP75, AR100`` in percent, means over the categories that are annotated, NaN of none; and
        ``num_categories``, their number.
    """
    annotated = [per_class[name] for name in parts if per_class[name]["num_annotations"]]
    keys = ("AP", "AP50", "AP75", "AR100")
    means = {key: float(np.mean([figures[key] for figures in annotated])) if annotated else np.nan for key in keys}
    return means | {"num_categories": len(annotated)}


def exact_grouping(outcomes: Iterable[ImageOutcome]) -> dict[str, float]:
    """How often the detected thirds of an implant, all of them and nothing else, were put into one implant.

    Returns:
        ``exact``: share in [0, 1], NaN of none; ``num_implants``: true implants with a detected third.
    """
    exact = []
    for outcome in outcomes:
        wanted: dict[int, set[int]] = {}
        groups: dict[int, set[int]] = {}
        for index, third in enumerate(outcome.thirds):
            if third.truth is not None:
                wanted.setdefault(third.truth, set()).add(index)
            if third.owner is not None:
                groups.setdefault(third.owner, set()).add(index)
        exact += [group in groups.values() for group in wanted.values()]
    return {"exact": float(np.mean(exact)) if exact else float("nan"), "num_implants": len(exact)}


def inferred_recall(outcomes: Iterable[ImageOutcome]) -> dict[str, float]:
    """How many of the thirds that the detector missed were inferred, at an IoU of 0.5.

    Only implants with a score from 0.5 on count: the others are many, and nobody looks at them.

    Returns:
        ``recall``: share of the missed thirds on which one was inferred; ``precision``: share of the inferred ones that
        lie on an annotated third, missed or not, but for those that nobody can judge, as they belong to an implant on
        which this third is not annotated; ``edges_within_95``: share of the edges of those inferred on a found implant
        that lie within 1.96 of their standard deviations of the annotated ones, which should be 0.95. All in [0, 1],
        NaN of none. ``num_missed``: annotated thirds that were not detected; ``num_inferred``; ``num_judged``.
    """
    missed = recovered = guessed = judged = right = 0
    within: list[bool] = []
    for outcome in outcomes:
        detected = {(third.part.third, third.truth) for third in outcome.thirds}
        inferred = [
            (outcome.pairs.get(index), part)
            for index, implant in enumerate(outcome.assembly.implants)
            if implant.score >= CONFIDENT
            for part in implant.parts
            if part.inferred
        ]
        guessed += len(inferred)
        for owner, part in inferred:
            if owner is not None and part.box_std and part.third in (true := outcome.truth[owner].boxes):
                edges = zip(part.box, true[part.third], part.box_std, strict=True)
                within += [abs(edge - annotated) <= TWO_SIDED_95 * std for edge, annotated, std in edges]
        for name in THIRDS:
            truth = {j: implant.boxes[name] for j, implant in enumerate(outcome.truth) if name in implant.boxes}
            lost = [box for j, box in truth.items() if (name, j) not in detected]
            missed += len(lost)
            mine = [(owner, part.box) for owner, part in inferred if part.third == name]
            recovered += len(match([box for _, box in mine], lost))
            known = [box for owner, box in mine if owner is None or owner in truth]
            judged += len(known)
            right += len(match(known, list(truth.values())))
    return {
        "recall": recovered / missed if missed else float("nan"),
        "precision": right / judged if judged else float("nan"),
        "edges_within_95": float(np.mean(within)) if within else float("nan"),
        "num_missed": missed,
        "num_inferred": guessed,
        "num_judged": judged,
    }


def frames_per_second(seconds: Sequence[float]) -> float:
    """Images per second of one process, by the median of the seconds per image; NaN of none."""
    return float(1 / np.median(seconds)) if len(seconds) else float("nan")
