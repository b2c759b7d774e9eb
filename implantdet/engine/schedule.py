"""Lengths of a training: given in epochs, run in iterations."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from detectron2.config import CfgNode, get_cfg

logger = logging.getLogger(__name__)

# Detectron2's keys, which are results here. Somebody who sets one of them expects it to count.
_COMPUTED = ("SOLVER.MAX_ITER", "SOLVER.WARMUP_ITERS", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD")


@dataclass(frozen=True)
class Lengths:
    """Lengths in iterations; one iteration is one step of the optimizer on ``IMS_PER_BATCH`` images."""

    max_iter: int
    warmup_iters: int
    eval_period: int
    checkpoint_period: int


def lengths_in_iterations(
    num_images: int,
    ims_per_batch: int,
    max_epochs: float,
    warmup_epochs: float,
    eval_epochs: float,
    checkpoint_epochs: float = 0.0,
) -> Lengths:
    """Turn lengths in epochs into iterations, rounded to the nearest, at least one where nothing would happen.

    Args:
        num_images: images in the training set, >= 1.
        ims_per_batch: images per iteration over all processes, >= 1.
        max_epochs: length of the training, > 0.
        warmup_epochs: length of the warm-up, in [0, max_epochs).
        eval_epochs: distance between evaluations, > 0; with more than ``max_epochs`` there is one, at the end.
        checkpoint_epochs: distance between checkpoints, >= 0; with 0, or more than ``eval_epochs``, that between
            evaluations.

    Raises:
        ValueError: a length is out of its range; the message names the key.
    """
    if max_epochs <= 0:
        raise ValueError(f"SOLVER.MAX_EPOCHS must be > 0; found {max_epochs}")
    if not 0 <= warmup_epochs < max_epochs:
        raise ValueError(f"SOLVER.WARMUP_EPOCHS must be in [0, MAX_EPOCHS = {max_epochs}); found {warmup_epochs}")
    if eval_epochs <= 0:
        raise ValueError(f"SOLVER.EVAL_EPOCHS must be > 0; found {eval_epochs}")
    if checkpoint_epochs < 0:
        raise ValueError(f"SOLVER.CHECKPOINT_EPOCHS must be >= 0; found {checkpoint_epochs}")
    iters_per_epoch = num_images / ims_per_batch
    max_iter = max(1, round(max_epochs * iters_per_epoch))
    eval_period, checkpoint_period = (
        min(max_iter, max(1, round(epochs * iters_per_epoch)))
        for epochs in (eval_epochs, min(checkpoint_epochs or eval_epochs, eval_epochs))
    )
    return Lengths(max_iter, round(warmup_epochs * iters_per_epoch), eval_period, checkpoint_period)


def with_lengths(cfg: CfgNode, num_images: int) -> CfgNode:
    """A frozen copy of ``cfg`` with ``MAX_ITER``, ``WARMUP_ITERS``, ``EVAL_PERIOD`` and ``CHECKPOINT_PERIOD`` set.

    Raises:
        ValueError: one of these keys was set by hand, or a length is out of its range.
    """
    theirs, mine = get_cfg(), cfg
    for key in _COMPUTED:
        node, name = key.split(".")
        if mine[node][name] != theirs[node][name]:
            raise ValueError(
                f"{key} is {mine[node][name]}, but implantdet counts in epochs and computes it: "
                "leave it alone and set SOLVER.MAX_EPOCHS, WARMUP_EPOCHS, EVAL_EPOCHS and CHECKPOINT_EPOCHS"
            )
    lengths = lengths_in_iterations(
        num_images,
        cfg.SOLVER.IMS_PER_BATCH,
        cfg.SOLVER.MAX_EPOCHS,
        cfg.SOLVER.WARMUP_EPOCHS,
        cfg.SOLVER.EVAL_EPOCHS,
        cfg.SOLVER.CHECKPOINT_EPOCHS,
    )
    logger.info("%d images, %d per iteration: %s", num_images, cfg.SOLVER.IMS_PER_BATCH, lengths)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.MAX_ITER = lengths.max_iter
    cfg.SOLVER.WARMUP_ITERS = lengths.warmup_iters
    cfg.SOLVER.CHECKPOINT_PERIOD = lengths.checkpoint_period
    cfg.TEST.EVAL_PERIOD = lengths.eval_period
    cfg.freeze()
    return cfg
