"""Every configuration key that implantdet adds to Detectron2's, with meaning, unit and range."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode


def add_implantdet_config(cfg: CfgNode) -> None:
    """Add implantdet's keys and their defaults to ``cfg``, in place.

    Two of Detectron2's keys get other defaults: ``MODEL.DEVICE`` is ``cpu`` instead of a ``cuda`` that is not there,
    and ``MODEL.MASK_ON`` None, unless it is True already. Set ``MODEL.MASK_ON`` False after this.
    """
    _add_dataset_keys(cfg)
    _add_vit_keys(cfg)
    _add_part_head_keys(cfg)
    _add_mim_keys(cfg)
    _add_solver_keys(cfg)
    _add_assembly_keys(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    # True, False, or None: a mask head if every annotation of the training and test sets has a mask.
    cfg.MODEL.MASK_ON = cfg.MODEL.MASK_ON or None


def _add_dataset_keys(cfg: CfgNode) -> None:
    # Folder with annotations.json, images/ and folds.json (datasets/README.md).
    cfg.DATASETS.ROOT = "datasets/idd"
    # Prefix of the names that the folder is registered under: <NAME>_train_fold0, <NAME>_test, …
    cfg.DATASETS.NAME = "idd"

    # Pre-training: folder of images without labels, with its subfolders, in place of DATASETS.TRAIN; empty: none. If
    # DATASETS.ROOT has folds.json, pictures of its test images, and of those of DATASETS.TEST, are left out.
    cfg.DATASETS.IMAGE_FOLDER = ""

    # Pre-training: smallest share of the image that a crop may have, in (0, 1]; 1: the whole image, made square.
    # Crops should show things as large as the detector will see them.
    cfg.INPUT.MIN_CROP_AREA = 0.2
    cfg.INPUT.MAX_CROP_AREA = 1.0  # pre-training: largest share, in [MIN_CROP_AREA, 1]
    # Images with the modality `panoramic`, or without one and at least 1.7 times as wide as high, are seen this many
    # times as large, 1 to 8: implants are small in them. With
    # INPUT.CROP, and in pre-training, their crops are so many times smaller and come in as many pixels.
    cfg.INPUT.PANORAMIC_ZOOM = 1.0
    cfg.INPUT.NOISE_FRACTION = 0.06  # noise replaces up to this fraction of the pixels, in [0, 1]; paper section 4.3
    cfg.INPUT.FLIP_PROB = 0.5  # probability of each flip, horizontal and vertical, in [0, 1]
    cfg.INPUT.ROT90_PROB = 0.5  # probability of a quarter turn, either way alike, in [0, 1]
    # Probability that an image gets an implant of another one, in [0, 1]; the implants need masks and implant_id, and
    # those with rare categories come as much more often as DATALOADER.REPEAT_THRESHOLD says (0: all alike).
    cfg.INPUT.COPY_PASTE_PROB = 0.0


def _add_vit_keys(cfg: CfgNode) -> None:
    cfg.MODEL.VIT = CfgNode()
    # Any plain ViT of timm. It is built with patches of 16 pixels; the numbers in the name do not set any size.
    cfg.MODEL.VIT.NAME = "vit_base_patch16_224"
    cfg.MODEL.VIT.IMG_SIZE = 416  # side of the square, in pixels, whose patches have stored positions; multiple of 16
    cfg.MODEL.VIT.DROP_PATH_RATE = 0.1  # stochastic depth at the last block, in [0, 1)
    # Side of attention windows, in patches; 0: every block sees the whole image. Pre-training has no windows.
    cfg.MODEL.VIT.WINDOW_SIZE = 0
    cfg.MODEL.VIT.GLOBAL_BLOCKS = []  # indices of the blocks that see the whole image although windows are on
    cfg.MODEL.VIT.CHECKPOINTING = False  # recompute activations in the backward pass: less memory, more time
    cfg.MODEL.VIT.PYRAMID_CHANNELS = 256  # channels of p2 … p6
    # Accept MODEL.WEIGHTS with missing, unexpected or differently shaped keys of the ViT (otherwise an error).
    cfg.MODEL.VIT.ALLOW_PARTIAL_WEIGHTS = False


def _add_part_head_keys(cfg: CfgNode) -> None:
    cfg.MODEL.PART_HEAD = CfgNode()  # read by ImplantROIHeads and CascadeImplantROIHeads
    # binary_cross_entropy or focal: one question per category, so several can stand on one box.
    # cross_entropy: a softmax over categories that exclude each other, Detectron2's own head (but where annotated boxes
    # coincide: here one of them is proposed); to it what is not assessable is background like all not annotated.
    cfg.MODEL.PART_HEAD.LOSS = "binary_cross_entropy"
    cfg.MODEL.PART_HEAD.FOCAL_GAMMA = 2.0  # how much easy proposals are played down, 0 or >= 1
    cfg.MODEL.PART_HEAD.FOCAL_ALPHA = 0.25  # share of yes against no, in [0, 1]; < 0: no such balance
    # none, inverse_frequency, effective_number (class-balanced loss), or given; those between count the training set.
    cfg.MODEL.PART_HEAD.CLASS_WEIGHTING = "none"
    cfg.MODEL.PART_HEAD.CLASS_WEIGHTS = []  # > 0, one per category, for the weighting `given`
    cfg.MODEL.PART_HEAD.EFFECTIVE_NUMBER_BETA = 0.999  # in [0, 1); 0: all alike, towards 1: inverse frequency
    cfg.MODEL.PART_HEAD.SOFT_NMS_SIGMA = 0.0  # width of the Gaussian of Soft-NMS, in IoU², > 0; 0: NMS
    # A detection gets the mean box of the candidates of its category that overlap with it from this IoU on, in [0, 1];
    # with TEST.AUG, also the mean score over the versions. 0: the best candidate's box and score. Not with Soft-NMS.
    cfg.MODEL.PART_HEAD.BOX_VOTING_IOU = 0.0
    # w, in [0, 1), of score = probability ** (1 - w) * objectness ** w: how far the RPN has a say in it.
    cfg.MODEL.PART_HEAD.OBJECTNESS_WEIGHT = 0.0
    # With TEST.AUG.ENABLED, --eval-only and the second stage see each image in several versions. TEST.AUG.FLIP means
    # flips of both kinds here, which models know if they were trained with them (INPUT.FLIP_PROB); also turned by 90°?
    cfg.TEST.AUG.ROT90 = False
    # Longest side, in pixels, of what the detector is shown of an image, after INPUT.MIN_SIZE_TEST: larger ones are cut
    # into tiles that overlap, and what is found is united; with TEST.AUG, each version. 0: the whole image.
    cfg.TEST.TILE_SIZE = 0
    cfg.TEST.TILE_OVERLAP = 128  # pixels, below TILE_SIZE; what is larger is looked for in the whole image, shrunk


def _add_mim_keys(cfg: CfgNode) -> None:
    cfg.MODEL.MIM = CfgNode()
    # What is predicted for a hidden patch: pixel, patch_embed (the encoder's own patch embeddings) or encoder (deep
    # features of the encoder's moving average).
    cfg.MODEL.MIM.TARGET = "pixel"
    cfg.MODEL.MIM.TARGET_LAYERS = []  # encoder: indices of the blocks whose outputs are averaged; empty: all
    cfg.MODEL.MIM.EMA_DECAY = 0.999  # encoder: decay of its moving average per step, in [0, 1)
    cfg.MODEL.MIM.NORM_TARGET = True  # standardise every patch's target over its channels
    cfg.MODEL.MIM.LOSS = "l2"  # l1, l2 or smooth_l1
    cfg.MODEL.MIM.PIXEL_WEIGHT = 0.0  # weight of a second loss on pixels, >= 0; 0: none
    cfg.MODEL.MIM.MASK_RATIO = 0.75  # share of hidden patches, in [0, 0.95]; 0: nothing is hidden, everything predicted
    cfg.MODEL.MIM.MASK_BLOCK = 1  # side of the hidden squares, in patches, >= 1; 1: patches at random
    cfg.MODEL.MIM.DECODER_DEPTH = 8  # blocks, >= 0; 0: a linear head, and mask tokens pass through the encoder
    cfg.MODEL.MIM.DECODER_DIM = 512  # channels, divisible by 4 and by DECODER_HEADS
    cfg.MODEL.MIM.DECODER_HEADS = 16  # attention heads, >= 1
    # The collapse guard compares the target's spread across images with the one before training.
    cfg.MODEL.MIM.GUARD_PERIOD = 100  # iterations between measurements, >= 1
    cfg.MODEL.MIM.GUARD_IMAGES = 32  # images that are compared, >= 2
    # Smallest share of the spread (of an effective rank: of what is above 1) that is allowed, in [0, 1). Trainings that
    # learned something kept 0.6 or more.
    cfg.MODEL.MIM.GUARD_FRACTION = 0.2


def _add_solver_keys(cfg: CfgNode) -> None:
    # Lengths in passes over the training set, written with a point (50.0); MAX_ITER, WARMUP_ITERS, CHECKPOINT_PERIOD
    # and TEST.EVAL_PERIOD follow from them.
    cfg.SOLVER.MAX_EPOCHS = 100.0  # > 0
    cfg.SOLVER.WARMUP_EPOCHS = 10.0  # in [0, MAX_EPOCHS)
    cfg.SOLVER.EVAL_EPOCHS = 5.0  # evaluate every so many epochs, > 0
    cfg.SOLVER.CHECKPOINT_EPOCHS = 0.0  # save every so many epochs, >= 0; 0, or more than EVAL_EPOCHS: as these
    cfg.SOLVER.BETAS = [0.9, 0.999]  # AdamW's
    cfg.SOLVER.LAYER_DECAY = 0.7  # learning rate factor from one ViT block to the block below it, in (0, 1]; 1: off
    cfg.SOLVER.ACCUMULATION_STEPS = 1  # parts of a batch that pass one after another, to save memory, >= 1
    # Decay per step of the averaged weights that are evaluated, in [0, 1); 0: off. A training that starts from the
    # checkpoint of another one, as of a pre-training, takes its weights as they are, not their average.
    cfg.SOLVER.EMA_DECAY = 0.0


def _add_assembly_keys(cfg: CfgNode) -> None:
    cfg.ASSEMBLY = CfgNode()  # read by PartAssembler: from parts to implants
    # exact: the set partition of least cost. kmeans: as many clusters as the most frequent third has parts.
    # kmeans_paper: as many clusters as parts, then merged by the two thresholds below.
    cfg.ASSEMBLY.METHOD = "exact"
    cfg.ASSEMBLY.MISS_RATE = 0.05  # share of thirds that go undetected, until calibration measures it, in (0, 1)
    # Nats that it costs to call a part of full score a false positive, until calibration measures it, > 0.
    cfg.ASSEMBLY.FALSE_COST = 12.0
    # Standard deviation of detected edges, in sides of their box, until calibration measures it, >= 0.
    cfg.ASSEMBLY.BOX_NOISE = 0.03
    cfg.ASSEMBLY.MERGE_DISTANCE = 1.25  # between centres of clusters that are merged, in sides of a part, >= 0
    cfg.ASSEMBLY.MERGE_OVERLAP = 0.25  # share of the smaller cluster's box from which on they are merged, in (0, 1]
    cfg.ASSEMBLY.MIN_SCORE = 0.05  # threshold of categories that calibration saw too seldom, in [0, 1]
    cfg.ASSEMBLY.SCORE_QUANTILE = 0.05  # share of the right detections that adaptive thresholds may drop, in [0, 1]
    cfg.ASSEMBLY.COVERAGE = 0.9  # share of conformal sets that should hold the true system, in (0, 1)
    cfg.ASSEMBLY.LINES = ""  # yaml of product lines to choose from; empty: implantdet/phantom/lines.yaml
