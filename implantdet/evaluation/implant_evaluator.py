"""The evaluator of both stages: parts, whole implants as detected, and implants as assembled."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from implantdet.assembly.assembler import PartAssembler
from implantdet.assembly.known import known_implants, scale_of
from implantdet.assembly.line_table import warn_of_unlisted
from implantdet.data.groups import patient_groups
from implantdet.data.idd import read_json, write_json
from implantdet.evaluation.attribute_metrics import attribute_metrics, axes_of
from implantdet.evaluation.coco_evaluator import COCOEvaluator, coco_ground_truth, without_nan
from implantdet.evaluation.detection_calibration import detection_calibration
from implantdet.evaluation.implant_matching import ImageOutcome
from implantdet.evaluation.implant_metrics import (
    Scored,
    exact_grouping,
    frames_per_second,
    implant_metrics,
    inferred_recall,
    part_metrics,
    stage1_boxes,
    stage2_boxes,
)
from implantdet.evaluation.implant_results import implants_content
from implantdet.evaluation.implant_table import implant_table
from implantdet.evaluation.stopwatch import TimedModel
from implantdet.evaluation.system_metrics import ranking_metrics, system_confusion
from implantdet.structures import Assembly
from implantdet.taxonomy import SYSTEM

logger = logging.getLogger(__name__)


class _Found(NamedTuple):
    """What was found in one image, and the seconds that the detector and the assembler took for it."""

    image_id: int
    whole: list[Scored]
    assembly: Assembly
    seconds: tuple[float, float]


class ImplantEvaluator(DatasetEvaluator):
    """Evaluates parts by COCO's metrics, and the implants that are assembled from them.

    ``evaluate`` writes, beside the files of ``parts``, on the main process: into ``results.json`` the key ``implants``,
    and ``implants.json`` with every assembled implant. ``datasets/README.md`` documents both.

    Args:
        parts: the evaluator of the detections, of ``implantdet.evaluation.coco_evaluator``; its dataset and folder are
            used here too.
        assembler: fitted; calibrated, where conformal sets are to be judged.
        detector: the model that is evaluated; without it the images per second are NaN.

    Raises:
        ValueError: ``parts`` is another evaluator, such as Detectron2's, or evaluates no boxes.
    """

    def __init__(self, parts: COCOEvaluator, assembler: PartAssembler, detector: TimedModel | None = None) -> None:
        if not isinstance(parts, COCOEvaluator) or "bbox" not in parts.tasks:
            raise ValueError(
                f"parts: found {type(parts).__module__}.{type(parts).__name__} of {getattr(parts, 'tasks', None)}, "
                f"expected {COCOEvaluator.__module__}.COCOEvaluator with the task bbox"
            )
        self._parts = parts
        self._assembler = assembler
        self._detector = detector
        self._found: list[_Found] = []

    def reset(self) -> None:
        """Forget the last round."""
        self._parts.reset()
        self._found = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Keep the detections of a batch, and assemble them.

        Args:
            inputs: dataset dicts, with ``image_id`` and, where they are known, ``mm_per_pixel`` or
                ``mm_per_pixel_matrix``.
            outputs: for every image its ``instances``, in the frame of the original image.
        """
        self._parts.process(inputs, outputs)
        detector = self._detector.seconds / len(inputs) if self._detector else float("nan")
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            start = time.perf_counter()
            assembly = self._assembler.explain(instances, scale_of(image))
            seconds = (detector, time.perf_counter() - start)
            whole = stage1_boxes(instances, self._assembler.meanings)
            self._found.append(_Found(image["image_id"], whole, assembly, seconds))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Evaluate what all processes found.

        Returns:
            On the main process, what ``parts`` returns and ``implants``, the main figures. Elsewhere nothing.
        """
        results = self._parts.evaluate()
        gathered = comm.gather(self._found, dst=0)
        if not comm.is_main_process():
            return {}
        found = {item.image_id: item for item in itertools.chain.from_iterable(gathered)}
        outcomes = self._outcomes(found)
        truth = itertools.chain.from_iterable(outcome.truth for outcome in outcomes)
        warn_of_unlisted((implant.product_line for implant in truth), self._assembler.ranker_.table.titles)
        metrics = self._metrics(outcomes, found)
        folder = self._parts.output_dir
        write_json(folder / "implants.json", implants_content(self._parts.dataset_name, outcomes))
        content = read_json(folder / "results.json")
        write_json(folder / "results.json", content | {"implants": without_nan(metrics)})
        logger.info("Implants of %s:\n%s", self._parts.dataset_name, implant_table(metrics))
        return results | {"implants": _main_figures(metrics)}

    def _outcomes(self, found: dict[int, _Found]) -> list[ImageOutcome]:
        """Every image that was looked at, with its true implants."""
        records = [record for record in DatasetCatalog.get(self._parts.dataset_name) if record["image_id"] in found]
        return [
            ImageOutcome(
                record["image_id"],
                (record["width"], record["height"]),
                found[record["image_id"]].assembly,
                tuple(known_implants(record, self._assembler.meanings)),
            )
            for record in records
        ]

    def _patients(self) -> dict[int, int]:
        """Image id → number of its patient (or source)."""
        records = DatasetCatalog.get(self._parts.dataset_name)
        return dict(zip([record["image_id"] for record in records], patient_groups(records), strict=True))

    def _metrics(self, outcomes: list[ImageOutcome], found: dict[int, _Found]) -> dict[str, Any]:
        meanings = self._assembler.meanings
        systems = [meaning.value for meaning in meanings if meaning is not None and meaning.slot == SYSTEM]
        matched = [(pair, outcome.image_id) for outcome in outcomes for pair in outcome.matched]
        pairs, patients = [pair for pair, _ in matched], self._patients()
        seconds = [item.seconds for item in found.values()]
        detector, both = [first for first, _ in seconds], [sum(stages) for stages in seconds]
        boxes = {number: item.whole for number, item in found.items()}
        stage1 = implant_metrics(outcomes, boxes, systems) | {"fps": frames_per_second(detector)} if systems else None
        boxes = {number: stage2_boxes(item.assembly) for number, item in found.items()}
        detections = read_json(self._parts.output_dir / "coco_instances_results.json")
        per_class = read_json(self._parts.output_dir / "results.json")["bbox"]["per_class"]
        third_of = dict(zip(self._assembler.thing_classes, meanings, strict=True))
        return {
            "num_implants": sum(len(outcome.truth) for outcome in outcomes),
            "parts": part_metrics(per_class, [k for k, m in third_of.items() if m is not None and m.slot != SYSTEM]),
            "detections": {"D-ECE": detection_calibration(coco_ground_truth(self._parts.dataset_name), detections)},
            "stage1": stage1,
            "stage2": implant_metrics(outcomes, boxes, systems) | {"fps": frames_per_second(both)},
            "grouping": exact_grouping(outcomes),
            "inferred": inferred_recall(outcomes),
            "axes": attribute_metrics(pairs, axes_of(meanings)),
            **ranking_metrics(pairs, [patients[image_id] for _, image_id in matched]),
            "system_confusion": system_confusion(outcomes, self._assembler.taxonomy.systems),
        }


def _main_figures(metrics: dict[str, Any]) -> dict[str, float]:
    """The figures that the log's last lines show."""
    figures: dict[str, float] = {f"parts_{key}": metrics["parts"][key] for key in ("AP", "AP50", "AP75")}
    for stage in ("stage1", "stage2"):
        if metrics[stage]:
            best = metrics[stage]["by_system"] or metrics[stage]["any_system"]
            figures |= {f"{stage}_{key}": best[key] for key in ("AP", "AP50", "AP75")}
            figures[f"{stage}_fps"] = metrics[stage]["fps"]
    return figures | {"exact_grouping": metrics["grouping"]["exact"], "system_top1": metrics["systems"]["top1"]}
