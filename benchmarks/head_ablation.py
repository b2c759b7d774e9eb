"""What each ingredient of the part detector is worth, on the phantom: three seeds, paired intervals.

    python benchmarks/head_ablation.py [--work DIR] [--images N] [--passes P] [--start-passes P] [--val-images N]
                                       [--seeds 0 1 2] [--jobs J] [KEY VALUE …]
    python benchmarks/head_ablation.py --smoke

Settings of ``STEPS`` add one thing to the one before; those of ``BESIDE`` add one thing to the multi-label head alone.
All start from one detector of whole implants alone, are trained on fold 0 for the same number of images and evaluated
on its validation part. An interrupted run goes on when it is started again with the same --work.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import head_runs as runs
from head_curve import subset

CONFIG = "configs/idd_tiny.yaml"
MULTI_LABEL = "multi-label sigmoid"
SAMPLING = ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler")  # as rare as idd_tiny says
COPY_PASTE = ("INPUT.COPY_PASTE_PROB", "0.5")
STOCK = (
    *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "DATALOADER.SAMPLER_TRAIN", "TrainingSampler"),
    # Off in all settings: the stock head has none of it, and every step changes one thing.
    *("MODEL.PART_HEAD.BOX_VOTING_IOU", "0.0", "MODEL.PART_HEAD.OBJECTNESS_WEIGHT", "0.0"),
)
STEPS = {
    "stock softmax head": (),
    MULTI_LABEL: ("MODEL.ROI_HEADS.NAME", "ImplantROIHeads"),
    "+ class weights": ("MODEL.PART_HEAD.CLASS_WEIGHTING", "effective_number"),
    "+ focal": ("MODEL.PART_HEAD.LOSS", "focal"),
    "+ sampling": SAMPLING,
    "+ copy-paste": COPY_PASTE,
}
BESIDE = {
    "multi-label, sampling": SAMPLING,
    "multi-label, copy-paste": COPY_PASTE,
    "multi-label, cascade": ("MODEL.ROI_HEADS.NAME", "CascadeImplantROIHeads"),
}


def settings() -> tuple[dict[str, list[str]], dict[str, str]]:
    """Options of each setting, its own after those of its base; and the name of this base."""
    options: list[str] = list(STOCK)
    result, base_of = {}, {}
    for name, added in STEPS.items():
        if result:
            base_of[name] = list(result)[-1]
        options = [*options, *added]
        result[name] = options
    for name, added in BESIDE.items():
        result[name] = [*result[MULTI_LABEL], *added]
        base_of[name] = MULTI_LABEL
    return result, base_of


def main() -> None:
    """Train what is missing, then compare."""
    parser = runs.parser_of(__doc__, "head_ablation", images=5572)
    parser.add_argument("--passes", type=int, default=2000, help="images that each training sees")
    parser.add_argument("--start-passes", type=int, default=8000, help="those of the detector that all start from")
    parser.add_argument("--val-images", type=int, default=400, help="of the validation part, at most")
    runs.report("head_ablation", parser.parse_args(), measure, passes=24, start_passes=24)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All settings and seeds, each beside its base."""
    whole = runs.make_phantom(arguments.work / "phantom", arguments.images)
    data = subset(whole, arguments.work / f"val_{arguments.val_images}", num_val=arguments.val_images)
    num_train = runs.num_train(data)

    def training(name: str, passes: int, *options: object) -> Path:
        common = (*runs.lengths(passes / num_train), *arguments.options)
        return runs.train(arguments.work / name, data, (*common, *options), CONFIG)

    def evaluated(*of_training: Any) -> Path:
        run = training(*of_training)
        runs.detect(run, data, "val_fold0")
        return run

    systems = f"('{runs.dataset_name(data, 'train_fold0')}_systems',)"
    training("whole_implants", arguments.start_passes, *STOCK, "DATASETS.TRAIN", systems)
    weights = ("MODEL.WEIGHTS", arguments.work / "whole_implants" / "model_final.pth")
    options_of, base_of = settings()
    steps = {
        # Seeds outermost: what is interrupted has all settings of the seeds that are done.
        (name, seed): partial(evaluated, f"{number}_seed{seed}", arguments.passes, *options, *weights, "SEED", seed)
        for seed in arguments.seeds
        for number, (name, options) in enumerate(options_of.items())
    }
    runs.in_parallel(arguments.jobs, list(steps.values()))
    return {
        "config": CONFIG,
        "num_images": arguments.images,
        "num_val": arguments.val_images,
        "image_passes": arguments.passes,
        "start_passes": arguments.start_passes,
        "seeds": arguments.seeds,
        "options": arguments.options,
        "settings": runs.compared(steps, data, "val_fold0", base_of),
    }


if __name__ == "__main__":
    main()
