"""How much an encoder knows without fine-tuning: linear probe and nearest neighbours on the boxes of a dataset.

Letters: K boxes, D channels of the features.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from sklearn.base import ClassifierMixin
from sklearn.linear_model import RidgeClassifierCV
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torchvision.ops import roi_align

from implantdet.data.groups import patient_groups
from implantdet.data.idd import write_json
from implantdet.modeling.vit import PATCH_SIZE
from implantdet.taxonomy import SYSTEM, THIRDS

logger = logging.getLogger(__name__)

_NUM_SPLITS = 4
_NUM_NEIGHBOURS = 20


class Sample(NamedTuple):
    """One box: what is asked (``middle.thread``), the answer (``square``), what stays together, and the features."""

    task: str
    label: str
    group: str
    features: np.ndarray


class FeatureEvaluator(DatasetEvaluator):
    """Asks for the design axes and the system of every box of a registered dataset, by features of a frozen encoder.

    The features of a box are the mean of the feature map inside it. Every design axis is a task of its own, the
    implant systems are one, and classes without an axis together are one (``class``). Answers are cross-validated in
    4 splits that keep patients (or sources, or images) together, and scored by balanced accuracy. A label has to occur
    in 4 groups at least to be asked for. Of a dataset without ``supercategories`` in its metadata, all classes are
    without an axis; images without annotations are passed over.

    ``evaluate`` writes ``features.json`` and returns, in percent, ``linear`` and ``knn``, the means over the tasks, and
    ``linear-<task>`` and ``knn-<task>``.

    Args:
        dataset_name: name of a registered dataset with annotations.
        output_dir: folder of the file, created if it is missing.
    """

    def __init__(self, dataset_name: str, output_dir: str | Path) -> None:
        self._dataset_name = dataset_name
        self._output_dir = Path(output_dir)
        self._records: dict[Any, dict[str, Any]] = {}
        self._samples: list[Sample] = []

    def reset(self) -> None:
        """Forget the features of the last round."""
        records = DatasetCatalog.get(self._dataset_name)
        self._records = {record["image_id"]: record for record in records}
        groups = map(str, patient_groups(records))
        self._groups = {record["image_id"]: group for record, group in zip(records, groups, strict=True)}
        self._samples = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Pool the features of every box.

        Args:
            inputs: with ``image_id``, ``image`` (C, h, w), and ``height`` and ``width`` of the image that the boxes
                are given in.
            outputs: with ``features`` (D, H, W), of stride 16 on ``image``.
        """
        for image, output in zip(inputs, outputs, strict=True):
            record = self._records[image["image_id"]]
            if not record.get("annotations"):
                continue
            scale = [
                size / image[key] for size, key in zip(image["image"].shape[-2:], ("height", "width"), strict=True)
            ]
            boxes = torch.tensor(
                [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in record["annotations"]]
            )
            pooled = pool_boxes(output["features"].cpu().float(), boxes * torch.tensor([scale[1], scale[0]]).repeat(2))
            questions = self._questions()
            for annotation, features in zip(record["annotations"], pooled.numpy(), strict=True):
                task, label = questions[annotation["category_id"]]
                self._samples.append(Sample(task, label, self._groups[image["image_id"]], features))

    def _questions(self) -> list[tuple[str, str]]:
        metadata = MetadataCatalog.get(self._dataset_name)
        supercategories = metadata.get("supercategories", [""] * len(metadata.thing_classes))
        return [question(*names) for names in zip(metadata.thing_classes, supercategories, strict=True)]

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Probe the features of all processes; on the main process, elsewhere nothing."""
        comm.synchronize()
        gathered = comm.gather(self._samples, dst=0)
        if not comm.is_main_process():
            return {}
        samples = list(itertools.chain.from_iterable(gathered))
        results = probe(samples)
        if not results:
            logger.warning(
                "%s: no task has two labels in %d groups each, and %d boxes outside of any part of the groups; "
                "features are not probed",
                *(self._dataset_name, _NUM_SPLITS, _NUM_NEIGHBOURS),
            )
            return {}
        self._output_dir.mkdir(parents=True, exist_ok=True)
        write_json(self._output_dir / "features.json", {"dataset": self._dataset_name, "features": results})
        logger.info("Features of %d boxes of %s:\n%s", len(samples), self._dataset_name, create_small_table(results))
        return {"features": results}


def question(name: str, supercategory: str) -> tuple[str, str]:
    """Task and label that a category stands for."""
    if supercategory == SYSTEM:
        return SYSTEM, name
    axis, _, value = name.rpartition(".")
    return (axis, value) if axis and supercategory in THIRDS else ("class", name)


def pool_boxes(features: Tensor, boxes: Tensor) -> Tensor:
    """Mean of a feature map (D, H, W) of stride 16 inside boxes (K, 4), XYXY in pixels: (K, D)."""
    pooled = roi_align(features[None].contiguous(), [boxes.float()], 1, 1 / PATCH_SIZE, sampling_ratio=4, aligned=True)
    return pooled.flatten(1)


def probe(samples: Sequence[Sample]) -> dict[str, float]:
    """Cross-validate both classifiers on every task; see ``FeatureEvaluator``."""
    probes: dict[str, ClassifierMixin] = {
        "linear": RidgeClassifierCV(np.logspace(-1, 5, 7), class_weight="balanced"),
        "knn": KNeighborsClassifier(_NUM_NEIGHBOURS, metric="cosine"),
    }
    results: dict[str, float] = {}
    for task in sorted({sample.task for sample in samples}):
        asked = _often_enough([sample for sample in samples if sample.task == task])
        labels = np.array([sample.label for sample in asked])
        if len(set(labels)) < 2 or len(asked) < 2 * _NUM_NEIGHBOURS:
            continue
        features = np.stack([sample.features for sample in asked])
        groups = [sample.group for sample in asked]
        splits = list(StratifiedGroupKFold(_NUM_SPLITS, shuffle=True, random_state=0).split(features, labels, groups))
        if min(len(train) for train, _ in splits) < _NUM_NEIGHBOURS:  # where one patient has most of them
            continue
        for name, classifier in probes.items():
            model = make_pipeline(StandardScaler(), classifier)
            answers = cross_val_predict(model, features, labels, cv=splits)
            results[f"{name}-{task}"] = 100 * float(balanced_accuracy_score(labels, answers))
    for name in probes:
        scores = [value for key, value in results.items() if key.startswith(f"{name}-")]
        if scores:
            results[name] = float(np.mean(scores))
    return results


def _often_enough(samples: list[Sample]) -> list[Sample]:
    groups: dict[str, set[str]] = {}
    for sample in samples:
        groups.setdefault(sample.label, set()).add(sample.group)
    return [sample for sample in samples if len(groups[sample.label]) >= _NUM_SPLITS]
