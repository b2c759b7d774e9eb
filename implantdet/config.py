"""Every configuration key that implantdet adds to Detectron2's, with meaning, unit and range."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_implantdet_config(cfg: CfgNode) -> None:
    """Add implantdet's keys and their defaults to ``cfg``, in place."""
    _add_dataset_keys(cfg)
    _add_vit_keys(cfg)
    _add_solver_keys(cfg)


def _add_dataset_keys(cfg: CfgNode) -> None:
    # Folder with annotations.json, images/ and folds.json (datasets/README.md).
    cfg.DATASETS.ROOT = "datasets/idd"
    # Prefix of the names that the folder is registered under: <NAME>_train_fold0, <NAME>_test, …
    cfg.DATASETS.NAME = "idd"

    cfg.INPUT.NOISE_FRACTION = 0.06  # noise replaces up to this fraction of the pixels, in [0, 1]; paper section 4.3
    cfg.INPUT.FLIP_PROB = 0.5  # probability of each flip, horizontal and vertical, in [0, 1]
    cfg.INPUT.ROT90_PROB = 0.5  # probability of a quarter turn, either way alike, in [0, 1]


def _add_vit_keys(cfg: CfgNode) -> None:
    cfg.MODEL.VIT = CfgNode()
    cfg.MODEL.VIT.NAME = "vit_base_patch16_224"  # any plain ViT of timm; the number at the end is not the image size
    cfg.MODEL.VIT.IMG_SIZE = 416  # side of the square, in pixels, whose patch grid the positions are stored for
    cfg.MODEL.VIT.DROP_PATH_RATE = 0.1  # stochastic depth at the last block, in [0, 1)
    cfg.MODEL.VIT.WINDOW_SIZE = 0  # side of attention windows, in patches; 0: every block sees the whole image
    cfg.MODEL.VIT.GLOBAL_BLOCKS = []  # indices of the blocks that see the whole image although windows are on
    cfg.MODEL.VIT.CHECKPOINTING = False  # recompute activations in the backward pass: less memory, more time
    cfg.MODEL.VIT.PYRAMID_CHANNELS = 256  # channels of p2 … p6
    # Accept weights that do not cover the whole backbone (otherwise an error).
    cfg.MODEL.VIT.ALLOW_PARTIAL_WEIGHTS = False


def _add_solver_keys(cfg: CfgNode) -> None:
    # Lengths in passes over the training set; they decide MAX_ITER and WARMUP_ITERS.
    cfg.SOLVER.MAX_EPOCHS = 100.0  # > 0
    cfg.SOLVER.WARMUP_EPOCHS = 10.0  # in [0, MAX_EPOCHS)
    cfg.SOLVER.EVAL_EPOCHS = 5.0  # evaluate and save every so many epochs, > 0
    cfg.SOLVER.BETAS = [0.9, 0.999]  # AdamW's
    cfg.SOLVER.LAYER_DECAY = 0.7  # learning rate factor from one ViT block to the block below it, in (0, 1]; 1: off
    cfg.SOLVER.ACCUMULATION_STEPS = 1  # iterations whose gradients are averaged into one step of the optimizer, >= 1
    cfg.SOLVER.EMA_DECAY = 0.0  # decay per step of the averaged weights that are evaluated, in [0, 1); 0: off
