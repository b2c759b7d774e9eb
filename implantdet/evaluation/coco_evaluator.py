"""The evaluator of parts and whole implants: COCO's metrics for boxes and, where they are predicted, masks."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import BoxMode
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table

from implantdet.data.checks import mask_area
from implantdet.data.idd import write_json
from implantdet.evaluation.coco_metrics import coco_metrics
from implantdet.evaluation.unanswered import unanswered
from implantdet.modeling.multi_label import CategoryTable

logger = logging.getLogger(__name__)


class COCOEvaluator(DatasetEvaluator):
    """COCO evaluation of a registered dataset, whose dataset dicts are the ground truth.

    Where categories are values of design axes, an axis that an annotated third has no answer on counts neither for nor
    against a detection (``unanswered``); else the numbers are those of COCO's own tools on the same annotations.

    ``evaluate`` writes ``results.json`` (what ``coco_metrics`` returns for every task, NaN as null) and
    ``coco_instances_results.json`` (the detections, in COCO's results format) on the main process.

    Args:
        dataset_name: name of a registered dataset.
        output_dir: folder of the two files, created if it is missing.
        tasks: ``bbox`` and, if the model predicts masks, ``segm``.
    """

    def __init__(self, dataset_name: str, output_dir: str | Path, tasks: Sequence[str] = ("bbox",)) -> None:
        self.dataset_name = dataset_name
        self.output_dir = Path(output_dir)
        self.tasks = tuple(tasks)
        self._detections: list[dict[str, Any]] = []

    def reset(self) -> None:
        """Forget the detections of the last round."""
        self._detections = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Keep the detections of a batch.

        Args:
            inputs: dataset dicts, with ``image_id``.
            outputs: for every image its ``instances`` with ``pred_boxes``, ``scores``, ``pred_classes`` and, for the
                task ``segm``, ``pred_masks``, in the frame of the original image. Detections whose score or box is
                not finite are passed over.
        """
        for image, output in zip(inputs, outputs, strict=True):
            found = output["instances"].to("cpu")
            finite = found.scores.isfinite() & found.pred_boxes.tensor.isfinite().all(dim=1)
            if not finite.all():  # else nothing is copied: masks are large
                found = found[finite]
            self._detections.extend(instances_to_coco_json(found, image["image_id"]))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Evaluate the detections of all processes.

        Returns:
            On the main process, for every task its metrics in percent, Detectron2's way: classes as ``AP-<name>``.
            Elsewhere nothing.

        Raises:
            ValueError: the task ``segm`` is asked for, and annotations have no mask.
        """
        comm.synchronize()
        gathered = comm.gather(self._detections, dst=0)
        if not comm.is_main_process():
            return {}
        ground_truth = coco_ground_truth(self.dataset_name)
        answers = [item for item in ground_truth["annotations"] if not item["iscrowd"]]
        without = sum("segmentation" not in item for item in answers)
        if without and "segm" in self.tasks:
            raise ValueError(
                f"{self.dataset_name}: {without} of {len(answers)} annotations have no mask, expected a 'segmentation' "
                "in each for the task segm; ask for bbox alone (MODEL.MASK_ON False), or annotate masks"
            )
        category_ids = _category_ids(self.dataset_name)
        detections = [
            {**detection, "category_id": category_ids[detection["category_id"]]}
            for detection in itertools.chain.from_iterable(gathered)
        ]
        if not detections:
            logger.warning("The model detected nothing on %s: every AP is 0.", self.dataset_name)
        results = {task: coco_metrics(ground_truth, detections, task) for task in self.tasks}
        self.output_dir.mkdir(parents=True, exist_ok=True)
        write_json(self.output_dir / "coco_instances_results.json", detections)
        summary = {
            "dataset": self.dataset_name,
            "num_images": len(ground_truth["images"]),
            "num_annotations": len(answers),
            "num_detections": len(detections),
        }
        write_json(self.output_dir / "results.json", summary | without_nan(results))
        return {task: _flatten(task, metrics) for task, metrics in results.items()}


def coco_ground_truth(dataset_name: str) -> dict[str, Any]:
    """The dataset dicts of a registered dataset as COCO content, with the dataset's own category ids.

    Crowds mark what nobody can judge (``unanswered``).
    """
    records = DatasetCatalog.get(dataset_name)  # the metadata is there after this
    category_ids = _category_ids(dataset_name)
    names = MetadataCatalog.get(dataset_name).thing_classes
    table = CategoryTable.of_dataset(dataset_name, len(names))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in records:
        images.append({"id": record["image_id"], "width": record["width"], "height": record["height"]})
        known = record.get("annotations", ())
        for annotation in (*known, *unanswered(known, table)):
            box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYWH_ABS)
            converted = {
                "id": len(annotations) + 1,
                "image_id": record["image_id"],
                "category_id": category_ids[annotation["category_id"]],
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": annotation.get("iscrowd", 0),
            }
            if segmentation := annotation.get("segmentation"):
                area = mask_area(segmentation, (record["width"], record["height"]))
                converted |= {"segmentation": segmentation, "area": area}
            annotations.append(converted)
    categories = [{"id": category_ids[index], "name": name} for index, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _category_ids(dataset_name: str) -> dict[int, int]:
    """The dataset's own category id of every class index; this index where it has none."""
    metadata = MetadataCatalog.get(dataset_name)
    own = {index: index for index in range(len(metadata.thing_classes))}
    to_contiguous = metadata.get("thing_dataset_id_to_contiguous_id", own)
    return {contiguous: category_id for category_id, contiguous in to_contiguous.items()}


def _flatten(task: str, metrics: dict[str, Any]) -> dict[str, float]:
    flat = {key: value for key, value in metrics.items() if key not in ("per_class", "AP_by_iou")}
    logger.info("Evaluation results for %s:\n%s", task, create_small_table(flat))
    per_class = {name: metrics_of_class["AP"] for name, metrics_of_class in metrics["per_class"].items()}
    logger.info("AP of every class for %s:\n%s", task, create_small_table(per_class))
    return flat | {f"AP-{name}": value for name, value in per_class.items()}


def without_nan(content: Any) -> Any:
    """JSON has no NaN: null stands for what could not be computed."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content
