"""What each ingredient of the part detector is worth, on the phantom: three seeds, paired intervals.

    python benchmarks/head_ablation.py [--work DIR] [--images N] [--epochs E] [--seeds 0 1 2] [--jobs J] [KEY VALUE …]
    python benchmarks/head_ablation.py --smoke

Every setting adds one thing to the one before it. All start from one detector of whole implants alone, are trained on
fold 0 for the same number of images and evaluated on its validation part. An interrupted run goes on when it is started
again with the same --work.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import head_runs as runs

STOCK = ("MODEL.ROI_HEADS.NAME", "StandardROIHeads")
STEPS = {
    # One box for all categories, as with the heads below: so that every step changes one thing.
    "stock softmax head": (*STOCK, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"),
    "multi-label sigmoid": runs.HEAD,
    "+ class weights": ("MODEL.PART_HEAD.CLASS_WEIGHTING", "effective_number"),
    "+ focal": ("MODEL.PART_HEAD.LOSS", "focal"),
    "+ sampling": (
        *("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
        *("DATALOADER.REPEAT_THRESHOLD", "0.2"),
    ),
    "+ copy-paste": ("INPUT.COPY_PASTE_PROB", "0.5"),
}


def settings() -> dict[str, list[str]]:
    """Options of each setting: its own after those of all before it."""
    options: list[str] = []
    result = {}
    for name, added in STEPS.items():
        options = [*options, *added]
        result[name] = options
    return result


def main() -> None:
    """Train what is missing, then compare."""
    parser = runs.parser_of(__doc__, "head_ablation", images=1000)
    parser.add_argument("--epochs", type=float, default=12.0)
    parser.add_argument("--start-epochs", type=float, default=24.0, help="of the detector that all settings start from")
    runs.report("head_ablation", parser.parse_args(), measure, epochs=1.0, start_epochs=1.0)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All settings and seeds, each beside the setting before it."""
    data = runs.make_phantom(arguments.work / "phantom", arguments.images)

    def training(name: str, epochs: float, *options: object) -> Path:
        common = (*runs.lengths(epochs), "TEST.DETECTIONS_PER_IMAGE", 300, *arguments.options)
        return runs.train(arguments.work / name, data, (*common, *options))

    whole = f"('{runs.dataset_name(data, 'train_fold0')}_systems',)"
    training("whole_implants", arguments.start_epochs, *STOCK, "DATASETS.TRAIN", whole)
    weights = ("MODEL.WEIGHTS", arguments.work / "whole_implants" / "model_final.pth")
    steps = {
        # Seeds outermost: what is interrupted has all settings of the seeds that are done.
        (name, seed): partial(training, f"{number}_seed{seed}", arguments.epochs, *options, *weights, "SEED", seed)
        for seed in arguments.seeds
        for number, (name, options) in enumerate(settings().items())
    }
    runs.in_parallel(arguments.jobs, list(steps.values()))
    return {
        "num_images": arguments.images,
        "epochs": arguments.epochs,
        "start_epochs": arguments.start_epochs,
        "seeds": arguments.seeds,
        "options": arguments.options,
        "settings": runs.compared(steps, data, "val_fold0"),
    }


if __name__ == "__main__":
    main()
