"""From command-line arguments to a complete config: what the data decides is read from the data."""

from __future__ import annotations

import argparse
import logging
import math
import warnings
from pathlib import Path

import numpy as np
import timm
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from implantdet.config import add_implantdet_config
from implantdet.data.idd import FOLDS
from implantdet.data.problems import DataError
from implantdet.data.register import register_idd
from implantdet.engine.merging import merge
from implantdet.modeling.backbone import build_vit_sfp_backbone
from implantdet.modeling.implant_roi_heads import CascadeImplantROIHeads, ImplantROIHeads
from implantdet.modeling.masked_image_model import MaskedImageModel
from implantdet.modeling.weights import TIMM_SCHEME, local_checkpoint

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"  # Detectron2's name
SAME_LEVEL = 5.0  # grey levels of 255 that mean and deviation may differ by from those that weights were trained with


def setup(args: argparse.Namespace) -> CfgNode:
    """Merge the config, register its dataset, complete it from the data, and start logging.

    Args:
        args: of Detectron2's ``default_argument_parser``.

    Returns:
        The frozen config; it is also written to ``OUTPUT_DIR/config.yaml``. An evaluation in the folder of a training
        leaves the config of the training there.

    Raises:
        DataError: the dataset folder cannot be used.
        FileNotFoundError: there is no file ``MODEL.WEIGHTS`` to start from or to evaluate.
        ValueError: as ``merge``, the checks below, and ``complete_from_data``.
    """
    warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release")  # Detectron2's anchors: nothing to do
    leave_out_tracing_advice()
    cfg = get_cfg()
    add_implantdet_config(cfg)
    merge(cfg, args.config_file, args.opts)
    if cfg.MODEL.WEIGHTS and not args.resume and "://" not in cfg.MODEL.WEIGHTS:
        local_checkpoint(cfg.MODEL.WEIGHTS.partition("?")[0])  # said here, before anything is built or written
    # A folder of images needs no dataset, and others' datasets need none of ours; where there is one, its test images
    # must be known to be left out.
    names = (*(() if trains_on_folder(cfg) else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST)
    theirs = [name in DatasetCatalog and "idd_root" not in MetadataCatalog.get(name).as_dict() for name in names]
    if (Path(cfg.DATASETS.ROOT) / FOLDS).is_file() or not all(theirs):
        try:
            register_idd(cfg.DATASETS.ROOT, cfg.DATASETS.NAME)
        except DataError as error:
            if not (trains_on_folder(cfg) and cfg.DATASETS.TEST) or (Path(cfg.DATASETS.ROOT) / FOLDS).is_file():
                raise
            raise DataError(
                f"DATASETS.TEST {tuple(cfg.DATASETS.TEST)}: {str(error).rstrip('.')}. Without a dataset to evaluate "
                "on, give DATASETS.TEST '()'"
            ) from error
    check_device(cfg)
    check_names(cfg)
    check_pixels(cfg)
    check_part_head(cfg)
    if not needs_no_labels(cfg):
        if not args.eval_only:
            check_levels(cfg)
        complete_from_data(cfg)
    cfg.freeze()
    if not torch.cuda.is_available():  # processes share the cores; fighting over them costs a multiple
        torch.set_num_threads(max(1, torch.get_num_threads() // comm.get_local_size()))
    record = Path(cfg.OUTPUT_DIR) / CONFIG
    of_training = record.with_name("last_checkpoint").is_file() and record.is_file()
    kept = record.read_bytes() if args.eval_only and of_training and comm.is_main_process() else None
    default_setup(cfg, args)
    if kept is not None:
        record.write_bytes(kept)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="implantdet")
    warn_of_contrasts(cfg)
    if not needs_no_labels(cfg):  # else they are left out of the training
        warn_of_trained_images(cfg)
    return cfg


def leave_out_tracing_advice() -> None:
    """PyTorch logs how to trace models wherever Detectron2's pooler asks whether it is traced: nothing to do."""
    logging.getLogger("torch.fx._symbolic_trace").addFilter(_is_no_tracing_advice)


def _is_no_tracing_advice(record: logging.LogRecord) -> bool:
    return "is_fx_tracing" not in record.getMessage()


def check_device(cfg: CfgNode) -> None:
    """See to it that ``MODEL.DEVICE`` is there: a config that a training left has that of its machine.

    Raises:
        ValueError: there is no GPU, or several processes were to share a CPU beside one.
    """
    device, has_gpu = cfg.MODEL.DEVICE, torch.cuda.is_available()
    if device.startswith("cuda") and not has_gpu:
        raise ValueError(f"MODEL.DEVICE is '{device}', and PyTorch finds no GPU here; give MODEL.DEVICE cpu")
    if device == "cpu" and has_gpu and comm.get_world_size() > 1:
        raise ValueError(
            "MODEL.DEVICE is 'cpu', and Detectron2 lets several processes talk by NCCL, from GPU to GPU, where there "
            "is one; give MODEL.DEVICE cuda, or hide the GPUs: CUDA_VISIBLE_DEVICES=''"
        )


def check_levels(cfg: CfgNode) -> None:
    """See to it that all parameters learn, where several processes expect the gradients of all of them.

    Raises:
        ValueError: nothing reads a level of the pyramid.
    """
    is_ours = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME) is build_vit_sfp_backbone
    if comm.get_world_size() == 1 or not is_ours:
        return
    read = {*cfg.MODEL.RPN.IN_FEATURES, *cfg.MODEL.ROI_HEADS.IN_FEATURES}
    unread = {"p2", "p3", "p4", "p5"} - read - ({"p5"} if "p6" in read else set())  # p6 is made of p5
    if unread:
        raise ValueError(
            f"MODEL.RPN.IN_FEATURES {list(cfg.MODEL.RPN.IN_FEATURES)} and MODEL.ROI_HEADS.IN_FEATURES "
            f"{list(cfg.MODEL.ROI_HEADS.IN_FEATURES)}: nothing reads {', '.join(sorted(unread))}, and training in "
            "several processes needs gradients of every level; add it to MODEL.RPN.IN_FEATURES"
        )


def check_names(cfg: CfgNode) -> None:
    """See to it that the datasets of ``DATASETS.TRAIN`` and ``DATASETS.TEST`` are there.

    ``DATASETS.TRAIN`` may name what is not there if a folder of images takes its place.

    Raises:
        ValueError: one is not registered; the message names those that belong to ``DATASETS.NAME``.
    """
    for key in ("TEST",) if trains_on_folder(cfg) else ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog:
                own = [known for known in DatasetCatalog if known.startswith(f"{cfg.DATASETS.NAME}_")]
                raise ValueError(
                    f"DATASETS.{key}: found '{name}', expected a registered dataset; DATASETS.NAME "
                    f"'{cfg.DATASETS.NAME}' registers {', '.join(own) or 'nothing without a DATASETS.ROOT'}"
                )


def check_pixels(cfg: CfgNode) -> None:
    """See to it that images can be normalised.

    Raises:
        ValueError: mean and standard deviation are of unequally many channels, or a deviation is not above 0.
    """
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in (*mean, *std))
    if not numbers or len(mean) != len(std) or len(mean) not in (1, 3) or min(std) <= 0:
        raise ValueError(
            f"found MODEL.PIXEL_MEAN {list(mean)} and MODEL.PIXEL_STD {list(std)}; expected as many numbers in both, 1 "
            "(grey) or 3, and deviations above 0"
        )


def warn_of_contrasts(cfg: CfgNode) -> None:
    """Warn where weights of timm would see images of another mean or deviation than they were trained on."""
    mean, std, name = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.MODEL.WEIGHTS.removeprefix(TIMM_SCHEME)
    try:
        told = timm.models.get_pretrained_cfg(name) if name != cfg.MODEL.WEIGHTS else None
    except RuntimeError:  # no such weights: told where they are read
        return
    if told is None:
        return
    wanted = [255 * float(np.mean(values)) for values in (told.mean, told.std)]
    if max(abs(np.mean(mean) - wanted[0]), abs(np.mean(std) - wanted[1])) > SAME_LEVEL:
        logger.warning(
            "%s were trained on images with the mean %.1f and the deviation %.1f in grey levels, and MODEL.PIXEL_MEAN "
            "is %s, MODEL.PIXEL_STD %s: they see other contrasts. Set them to these.",
            *(cfg.MODEL.WEIGHTS, *wanted, list(mean), list(std)),
        )


def check_part_head(cfg: CfgNode) -> None:
    """See to it that what is asked of the part head is asked of heads that listen.

    Raises:
        ValueError: a key of ``MODEL.PART_HEAD`` is set, and ``MODEL.ROI_HEADS.NAME`` does not read it.
    """
    defaults = get_cfg()
    add_implantdet_config(defaults)
    changed = [key for key, value in cfg.MODEL.PART_HEAD.items() if value != defaults.MODEL.PART_HEAD[key]]
    name = cfg.MODEL.ROI_HEADS.NAME
    if changed and not issubclass(ROI_HEADS_REGISTRY.get(name), ImplantROIHeads | CascadeImplantROIHeads):
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME is '{name}', which does not read MODEL.PART_HEAD; found other values than the "
            f"defaults for {', '.join(changed)}. Set MODEL.ROI_HEADS.NAME to ImplantROIHeads or "
            "CascadeImplantROIHeads, or leave these keys out"
        )


def needs_no_labels(cfg: CfgNode) -> bool:
    """Whether ``MODEL.META_ARCHITECTURE`` is pre-trained without labels."""
    return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE) is MaskedImageModel


def trains_on_folder(cfg: CfgNode) -> bool:
    """Whether ``DATASETS.IMAGE_FOLDER`` takes the place of ``DATASETS.TRAIN``; only pre-training reads it."""
    return needs_no_labels(cfg) and bool(cfg.DATASETS.IMAGE_FOLDER)


def complete_from_data(cfg: CfgNode) -> None:
    """Set the number of classes and, unless it is given, whether there is a mask head, from the data.

    Raises:
        ValueError: there is no training set, a test set has no image, a set other classes than the first, or
            ``MODEL.MASK_ON`` is asked for and annotations have no masks.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty; expected the name of a training set, which decides the classes")
    num_masks, lacking = 0, []
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        records = DatasetCatalog.get(name)
        if not records and name in cfg.DATASETS.TEST:
            raise ValueError(
                f"DATASETS.TEST: '{name}' has no image; expected another set, or DATASETS.TEST '()' to train without "
                "evaluation and without a second stage"
            )
        annotations = [annotation for record in records for annotation in record.get("annotations", ())]
        with_mask = sum("segmentation" in annotation for annotation in annotations)
        num_masks += with_mask
        if with_mask < len(annotations):
            lacking.append(f"{len(annotations) - with_mask} of the {len(annotations)} annotations of {name}")
        # The metadata is there after DatasetCatalog.get.
        found, classes = (MetadataCatalog.get(known).thing_classes for known in (name, cfg.DATASETS.TRAIN[0]))
        if found != classes:
            raise ValueError(
                f"DATASETS: '{name}' has the classes {found}, but '{cfg.DATASETS.TRAIN[0]}', to train on, has {classes}"
            )
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(classes)
    if cfg.MODEL.MASK_ON is None:
        cfg.MODEL.MASK_ON = num_masks > 0 and not lacking
    elif cfg.MODEL.MASK_ON and lacking:
        raise ValueError(
            f"MODEL.MASK_ON is True, but {' and '.join(lacking)} have no 'segmentation': "
            "set MODEL.MASK_ON False, or annotate masks"
        )


def warn_of_trained_images(cfg: CfgNode) -> None:
    """Log how many images of the test sets are trained on: another fold is easily changed in one key alone."""
    files = {
        name: {record.get("file_name") for record in DatasetCatalog.get(name)} - {None}
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    }
    trained = set().union(*(files[name] for name in cfg.DATASETS.TRAIN))
    for name in cfg.DATASETS.TEST:
        if known := len(files[name] & trained):
            logger.warning(
                "DATASETS.TEST: %d of the %d images of '%s' are in DATASETS.TRAIN, too: what is measured there says "
                "nothing about others. Another fold needs both keys.",
                *(known, len(files[name]), name),
            )
