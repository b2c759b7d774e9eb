"""Pre-train, train or evaluate a model.

python train_net.py --config-file configs/pretrain_mde.yaml [DATASETS.IMAGE_FOLDER PATH/TO/images DATASETS.TEST "()"]
python train_net.py --config-file configs/opg_vit_tiny.yaml [--resume] [--num-gpus N] [KEY VALUE …]
python train_net.py --config-file configs/opg_vit_tiny.yaml --eval-only MODEL.WEIGHTS OUTPUT_DIR/model_final.pth

Without a GPU, ``--num-gpus N`` starts N processes on the CPU.
"""

from __future__ import annotations

import argparse
import atexit
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, launch

import implantdet  # registers the components
from implantdet.engine.pretrainer import trainer_class
from implantdet.engine.setup import setup

PACKAGE = Path(implantdet.__file__).parent


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    """Run one process of the training or evaluation."""
    try:
        cfg = setup(args)
    except (ValueError, FileNotFoundError) as error:  # of what the user wrote: a traceback would hide it
        sys.exit(f"train_net.py: {error}")
    try:
        return run(cfg, args)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        # What our own code refuses is the user's, too; of anything else the traceback is needed.
        last = traceback.extract_tb(error.__traceback__)[-1]
        if not (Path(last.filename).is_relative_to(PACKAGE) and (last.line or "").startswith("raise")):
            raise
        sys.exit(f"train_net.py: {error}")


def run(cfg: CfgNode, args: argparse.Namespace) -> dict[str, Any] | None:
    """Train or evaluate."""
    if args.eval_only:
        return trainer_class(cfg).evaluate(cfg, resume=args.resume)
    trainer = trainer_class(cfg)(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def run_as_process(args: argparse.Namespace) -> None:
    """What each process does; one of several ends at once, without Python's own end.

    There, a thread of gloo that lets go of its last tensors ends in SIGABRT (pytorch/pytorch#179291), after a training
    that went well. Detectron2 holds the process groups, so that destroying them ends no thread.
    """
    main(args)
    if dist.is_initialized():
        atexit._run_exitfuncs()  # the workers of data loaders, open files
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    launch(
        run_as_process,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(arguments,),
    )
