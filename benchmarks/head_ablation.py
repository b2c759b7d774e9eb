"""What each ingredient of the part detector is worth, on the phantom: three seeds, paired intervals.

    python benchmarks/head_ablation.py [--work DIR] [--images N] [--epochs E] [--seeds 0 1 2] [--jobs J] [KEY VALUE …]
    python benchmarks/head_ablation.py --smoke

Every setting adds one thing to the one before it. All start from one detector of whole implants alone, are trained on
fold 0 for the same number of images and evaluated on its validation part. Apart from these, Detectron2's own ViTDet,
whose speed head_speed.py measures, and our detector are trained from random weights, for as many images. An interrupted
run goes on when it is started again with the same --work.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import _vitdet  # noqa: F401  registers Detectron2's ViT
import head_runs as runs
import numpy as np
from _record import write_result

STOCK = ("MODEL.ROI_HEADS.NAME", "StandardROIHeads")
VITDET = ("MODEL.BACKBONE.NAME", "vitdet", *STOCK)
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


def mean_accuracy(by_seed: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Mean over seeds of ``axis_accuracy``."""
    return {
        axis: {key: float(np.mean([seed[axis][key] for seed in by_seed])) for key in by_seed[0][axis]}
        for axis in by_seed[0]
    }


def main() -> None:
    """Train what is missing, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("output/head_ablation"), help="data and runs")
    parser.add_argument("--images", type=int, default=1000, help="size of the phantom")
    parser.add_argument("--epochs", type=float, default=12.0)
    parser.add_argument("--start-epochs", type=float, default=24.0, help="of the detector that all settings start from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--smoke", action="store_true", help="minutes, in a temporary folder, no record")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="KEY VALUE … for every setting")
    arguments = parser.parse_args()
    if arguments.smoke:
        with tempfile.TemporaryDirectory() as folder:
            arguments.work, arguments.images = Path(folder), 40
            arguments.epochs = arguments.start_epochs = 1.0
            arguments.seeds, arguments.options = [0, 1], list(runs.SMOKE)
            print(measure(arguments))
    else:
        write_result("head_ablation", measure(arguments))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All settings and seeds, each beside the setting before it."""
    data = runs.make_phantom(arguments.work / "phantom", arguments.images)

    def training(name: str, epochs: float, *options: object, script: str = runs.SCRIPT) -> Path:
        lengths = (
            *("SOLVER.MAX_EPOCHS", epochs, "SOLVER.WARMUP_EPOCHS", epochs / 12, "SOLVER.EVAL_EPOCHS", epochs / 2),
            *("TEST.DETECTIONS_PER_IMAGE", 300, *arguments.options),
        )
        return runs.train(arguments.work / name, data, (*lengths, *options), script=script)

    whole = f"('{runs.dataset_name(data, 'train_fold0')}_systems',)"
    start = partial(training, "whole_implants", arguments.start_epochs, *STOCK, "DATASETS.TRAIN", whole)
    weights = ("MODEL.WEIGHTS", arguments.work / "whole_implants" / "model_final.pth")
    steps, scratch, vitdet = {}, {}, "benchmarks/vitdet_train.py"
    # Seeds outermost: what is interrupted has all settings of the seeds that are done.
    for seed in arguments.seeds:
        make = partial(training, f"vitdet_seed{seed}", arguments.epochs, *VITDET, "SEED", seed, script=vitdet)
        scratch["detectron2's ViTDet", seed] = make
        scratch["ours", seed] = partial(training, f"ours_seed{seed}", arguments.epochs, *STOCK, "SEED", seed)
        for number, (name, options) in enumerate(settings().items()):
            run = f"{number}_seed{seed}"
            steps[name, seed] = partial(training, run, arguments.epochs, *options, *weights, "SEED", seed)
    runs.in_parallel(arguments.jobs, [start, *scratch.values()])
    runs.in_parallel(arguments.jobs, list(steps.values()))
    return {
        "num_images": arguments.images,
        "epochs": arguments.epochs,
        "start_epochs": arguments.start_epochs,
        "seeds": arguments.seeds,
        "options": arguments.options,
        "from_random_weights": told(data, scratch),
        "settings": told(data, steps),
    }


def told(data: Path, trainings: dict[tuple[str, int], Callable[[], Path]]) -> dict[str, dict[str, Any]]:
    """What is found on the validation part, by setting and seed, with the difference to the setting before."""
    truth = runs.ground_truth(data, "val_fold0")
    table: dict[str, dict[str, Any]] = {}
    for (name, seed), training in trainings.items():
        found = runs.detect(training(), data, "val_fold0")
        row = table.setdefault(name, {"by_seed": {}, "axes": {}})
        row["by_seed"][seed] = runs.metrics(truth, found)
        row["axes"][seed] = runs.axis_accuracy(truth, found)
    for before, after in itertools.pairwise(table.values()):
        after["difference"] = runs.paired_differences(after["by_seed"], before["by_seed"])
    for row in table.values():
        row["axes"] = mean_accuracy(list(row["axes"].values()))
    return table


if __name__ == "__main__":
    main()
