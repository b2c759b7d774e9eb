"""The second stage in a training: fit the assembler, calibrate it, keep it beside the checkpoints, report implants."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import nn

from implantdet.assembly.assembler import PartAssembler
from implantdet.assembly.fitting import TooFewImplantsError
from implantdet.engine.merging import default_config, value_of
from implantdet.engine.setup import CONFIG, needs_no_labels
from implantdet.taxonomy import default_taxonomy

logger = logging.getLogger(__name__)

ASSEMBLER = "assembler.json"


class SecondStage(HookBase):
    """Learns to assemble implants, where the training set shows how.

    Before the training, the assembler is fitted to the training set. After it, it is calibrated by predictions on
    ``DATASETS.TEST``, which is the validation fold there, and written to ``OUTPUT_DIR/assembler.json``; then the
    implants of ``<DATASETS.NAME>_test`` are evaluated in a folder of that name.

    Args:
        cfg: of the training.
        model: that is evaluated.
        found: dataset name → what ``model`` detects there, where an evaluation has found it by the end of the training.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, found: Mapping[str, Predictions] | None = None) -> None:
        self._cfg = cfg
        self._model = model
        self._found = {} if found is None else found  # still empty
        self._assembler: PartAssembler | None = None
        self._path = Path(cfg.OUTPUT_DIR) / ASSEMBLER

    def before_train(self) -> None:
        """Fit; it takes seconds, and what the data lacks shows before hours of training."""
        self._assembler = fit_assembler(self._cfg)

    def after_step(self) -> None:
        """Remove what an earlier training left: it does not fit the weights that the last step has just saved.

        Where no step is left, as in a finished training that is calibrated anew, it stays until it is replaced.
        """
        if self.trainer.iter + 1 == self.trainer.max_iter and comm.is_main_process():
            self._path.unlink(missing_ok=True)

    def after_train(self) -> None:
        """Calibrate, save and report, unless the training was interrupted."""
        if self.trainer.iter < self.trainer.max_iter:
            return
        if self._assembler is None:
            if comm.is_main_process():
                self._path.unlink(missing_ok=True)
            return
        cfg = self._cfg
        records, predictions = [], []
        for name in cfg.DATASETS.TEST:
            collector = self._found.get(name)
            if collector is None:
                collector = Predictions()
                inference_on_dataset(self._model, self.trainer.build_test_loader(cfg, name), collector)
            records += DatasetCatalog.get(name)
            predictions += [collector.instances[record["image_id"]] for record in DatasetCatalog.get(name)]
        self._assembler.calibrate(records, predictions)  # in every process, with the same predictions
        if comm.is_main_process():
            self._assembler.save(self._path)
            logger.info("Saved the assembler, calibrated on %s: %s", ", ".join(cfg.DATASETS.TEST), self._path)
        self._report()

    def _report(self) -> None:
        assert self._assembler is not None, "after_train() has looked"
        test = f"{self._cfg.DATASETS.NAME}_test"
        records = DatasetCatalog.get(test) if test in DatasetCatalog else []
        if (
            test in self._cfg.DATASETS.TEST
            or not records
            or MetadataCatalog.get(test).thing_classes != MetadataCatalog.get(self._cfg.DATASETS.TRAIN[0]).thing_classes
        ):
            logger.warning(
                "%s is empty, not registered or of other classes, or the assembler was calibrated on it: no implants "
                "are reported.",
                test,
            )
            return
        cfg = self._cfg.clone()
        cfg.defrost()
        cfg.DATASETS.TEST = (test,)
        known = [annotation for record in records for annotation in record.get("annotations", ())]
        if not all("segmentation" in annotation for annotation in known):
            cfg.MODEL.MASK_ON = False  # boxes would be taken for the masks that are not there
        cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / test)
        self.trainer.test_implants(cfg, self._model, self._assembler)


def fit_assembler(cfg: CfgNode) -> PartAssembler | None:
    """An assembler that has learned from ``DATASETS.TRAIN``; None if its classes or annotations do not allow it."""
    records = [record for name in cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name)]
    classes = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes
    if not any(map(default_taxonomy().axis_of, classes)):
        return None
    assembler = PartAssembler(cfg, classes)
    try:
        return assembler.fit(records)
    except TooFewImplantsError as error:
        logger.warning("There is no second stage: %s.", error)
        return None


def load_assembler(cfg: CfgNode, checkpoint: str) -> PartAssembler | None:
    """The assembler that lies beside a checkpoint; None if there is no second stage.

    Warns of what makes its probabilities hold less than they promise, if the training's config lies there too.

    Raises:
        ValueError: the training set allows a second stage, but there is no assembler, or it is of another detector.
    """
    if needs_no_labels(cfg):
        return None
    if "://" in checkpoint:
        logger.warning("%s: nothing is looked for beside a URL, so there is no second stage.", checkpoint)
        return None
    path = Path(checkpoint).with_name(ASSEMBLER)
    if path.is_file():
        _compare_with_calibration(cfg, path.with_name(CONFIG))
        return PartAssembler(cfg, MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes).load(path)
    if fit_assembler(cfg) is None:
        return None
    raise ValueError(
        f"{path}: no such file; expected the assembler of the training that wrote {Path(checkpoint).name}. "
        "`python train_net.py --resume` with the config and OUTPUT_DIR of that training, and a validation set in "
        "DATASETS.TEST, writes it, without training anew if the training has ended"
    )


def _compare_with_calibration(cfg: CfgNode, record: Path) -> None:
    """Warn if ``cfg`` evaluates other detections than the assembler was calibrated by, or the same images."""
    if not record.is_file():
        return
    training, defaults = CfgNode(yaml.safe_load(record.read_text(encoding="utf-8"))), default_config()
    for key in _detecting_keys(cfg):
        now, then = value_of(cfg, key), value_of(training, key, value_of(defaults, key))
        if (list(now) if isinstance(now, tuple) else now) != (list(then) if isinstance(then, tuple) else then):
            logger.warning(
                "%s is %s, but the assembler was calibrated with %s (%s): the detector's scores differ, so scores of "
                "implants and conformal sets do not hold what they promise. Set %s %s, or calibrate anew by `python "
                "train_net.py --resume` with the config of the training and %s %s.",
                *(key, now, then, record, key, then, key, now),
            )
    merging = ("MERGE_DISTANCE", "MERGE_OVERLAP") if cfg.ASSEMBLY.METHOD == "kmeans_paper" else ()
    for key in ("METHOD", *merging, "COVERAGE", "MIN_SCORE", "SCORE_QUANTILE"):
        now, then = cfg.ASSEMBLY[key], training.get("ASSEMBLY", {}).get(key, cfg.ASSEMBLY[key])
        if now != then:
            logger.warning(
                "ASSEMBLY.%s is %s, but thresholds, scores and conformal sets were calibrated with %s (%s), and stay "
                "so. Set ASSEMBLY.%s %s, or calibrate anew by `python train_net.py --resume` with the config of the "
                "training and ASSEMBLY.%s %s.",
                *(key, now, then, record, key, then, key, now),
            )
    zoom = training.get("INPUT", {}).get("PANORAMIC_ZOOM", 1.0)
    if zoom != cfg.INPUT.PANORAMIC_ZOOM:
        logger.warning(
            "INPUT.PANORAMIC_ZOOM is %s, but the assembler was calibrated with %s (%s): so was the detector trained, "
            "and its scores in panoramics differ. Set INPUT.PANORAMIC_ZOOM %s.",
            *(cfg.INPUT.PANORAMIC_ZOOM, zoom, record, zoom),
        )
    for name in cfg.DATASETS.TEST:
        if name in training.get("DATASETS", {}).get("TEST", ()):
            logger.warning(
                "The assembler was calibrated on %s (DATASETS.TEST in %s): scores of implants and conformal sets look "
                "better there than they are. Report a set that it has not seen.",
                name,
                record,
            )


def _detecting_keys(cfg: CfgNode) -> list[str]:
    """Keys that change what the same weights find, or how they score it."""
    keys = [f"MODEL.PART_HEAD.{key}" for key in ("SOFT_NMS_SIGMA", "BOX_VOTING_IOU", "OBJECTNESS_WEIGHT")]
    keys += [f"MODEL.ROI_HEADS.{key}" for key in ("NMS_THRESH_TEST", "SCORE_THRESH_TEST")]
    keys += [f"MODEL.RPN.{key}" for key in ("PRE_NMS_TOPK_TEST", "POST_NMS_TOPK_TEST", "NMS_THRESH")]
    keys += ["MODEL.VIT.WINDOW_SIZE", "MODEL.VIT.GLOBAL_BLOCKS", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"]
    keys += ["TEST.AUG.ENABLED", "TEST.TILE_SIZE", "TEST.DETECTIONS_PER_IMAGE"]
    if cfg.TEST.AUG.ENABLED:  # its versions have sizes of their own
        keys += [f"TEST.AUG.{key}" for key in ("MIN_SIZES", "MAX_SIZE", "FLIP", "ROT90")]
    else:
        keys += ["INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST"]
    return keys + (["TEST.TILE_OVERLAP"] if cfg.TEST.TILE_SIZE else [])


class Predictions(DatasetEvaluator):
    """Keeps what the model says, of all processes in every process: image id → ``Instances``."""

    def __init__(self) -> None:
        self.instances: dict[Any, Instances] = {}

    def reset(self) -> None:
        """Forget the last round."""
        self.instances = {}

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Keep the detections of a batch: boxes, scores and classes."""
        for image, output in zip(inputs, outputs, strict=True):
            found = output["instances"].to("cpu")
            fields = {name: found.get(name) for name in ("pred_boxes", "scores", "pred_classes")}  # masks are large
            self.instances[image["image_id"]] = Instances(found.image_size, **fields)

    def evaluate(self) -> None:
        """Take in what the other processes found."""
        gathered = comm.all_gather(list(self.instances.items()))
        self.instances = dict(itertools.chain.from_iterable(gathered))
