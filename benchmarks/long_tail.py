"""Do losses for long tails help a part detector that has learned the frequent categories? On the phantom.

    python benchmarks/long_tail.py --start RUN [--work DIR] [--images N] [--val-images V] [--passes P]
                                   [--seeds 0 1 2] [--jobs J] [KEY VALUE …]
    python benchmarks/long_tail.py --smoke

RUN: OUTPUT_DIR of a detector of configs/idd_tiny.yaml, trained on the training images of fold 0 of the same phantom
(head_curve.py's WORK/final). It is trained on for P image passes with each loss, and evaluated on images of the
validation part.
An interrupted run goes on when it is started again with the same --work.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import _long_tail  # noqa: F401  registers heads
import head_runs as runs
from _record import write_result
from head_curve import subset

from implantdet.data.idd import load_folds

CONFIG = "configs/idd_tiny.yaml"
HEADS = {
    "binary cross-entropy": "ImplantROIHeads",
    "federated": "FederatedROIHeads",
    "seesaw": "SeesawROIHeads",
}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train what is missing, then compare each loss with the first."""
    whole = runs.make_phantom(arguments.work / "phantom", arguments.images)
    data = subset(whole, arguments.work / f"val_{arguments.val_images}", num_val=arguments.val_images)
    epochs = arguments.passes / sum(len(fold) for fold in load_folds(data)["folds"][1:])
    length = ("SOLVER.MAX_EPOCHS", epochs, "SOLVER.WARMUP_EPOCHS", epochs / 12, "SOLVER.EVAL_EPOCHS", epochs / 2)
    weights = ("MODEL.WEIGHTS", arguments.start / "model_final.pth") if arguments.start else ()
    trainings = {
        (name, seed): partial(
            runs.train,
            arguments.work / f"{heads}_seed{seed}",
            data,
            ("MODEL.ROI_HEADS.NAME", heads, *length, *weights, *arguments.options, "SEED", seed),
            config=CONFIG,
            script="benchmarks/compared_train.py",
        )
        for seed in arguments.seeds
        for name, heads in HEADS.items()
    }
    runs.in_parallel(arguments.jobs, list(trainings.values()))
    return {
        "config": CONFIG,
        "num_images": arguments.images,
        "num_val": arguments.val_images,
        "image_passes": arguments.passes,
        "seeds": arguments.seeds,
        "options": arguments.options,
        "losses": runs.compared(trainings, data, "val_fold0", with_first=True),
    }


def main() -> None:
    """Train what is missing, then write the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, help="OUTPUT_DIR of the detector to go on from")
    parser.add_argument("--work", type=Path, default=Path("output/long_tail"), help="data and runs")
    parser.add_argument("--images", type=int, default=5572, help="size of the phantom")
    parser.add_argument("--val-images", type=int, default=500, help="of the validation part, at most")
    parser.add_argument("--passes", type=int, default=2000, help="images that each training sees")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--smoke", action="store_true", help="minutes, in a temporary folder, no record")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="KEY VALUE … for every loss")
    arguments = parser.parse_args()
    if arguments.smoke:
        with tempfile.TemporaryDirectory() as folder:
            arguments.work, arguments.images, arguments.passes = Path(folder), 40, 24
            arguments.seeds, arguments.options = [0, 1], list(runs.SMOKE)
            print(measure(arguments))
    elif arguments.start is None:
        parser.error("--start is needed: OUTPUT_DIR of the detector to go on from")
    else:
        write_result("long_tail", measure(arguments))


if __name__ == "__main__":
    main()
