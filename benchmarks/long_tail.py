"""Do losses for long tails help a part detector that has learned the frequent categories? On the phantom.

    python benchmarks/long_tail.py --start RUN [--work DIR] [--images N] [--val-images V] [--passes P]
                                   [--seeds 0 1 2] [--jobs J] [KEY VALUE …]
    python benchmarks/long_tail.py --smoke

RUN: OUTPUT_DIR of a detector of configs/idd_tiny.yaml with MODEL.ROI_HEADS.NAME ImplantROIHeads, trained on the
training images of fold 0 of the same phantom (such as implant_road.py's). It is trained on for P image passes with
each loss, and evaluated on images of the validation part.
An interrupted run goes on when it is started again with the same --work.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import _long_tail  # noqa: F401  registers heads
import head_runs as runs
from head_curve import subset

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
    length = runs.lengths(arguments.passes / runs.num_train(data))
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
    first, *others = HEADS
    return {
        "config": CONFIG,
        "num_images": arguments.images,
        "num_val": arguments.val_images,
        "image_passes": arguments.passes,
        "seeds": arguments.seeds,
        "options": arguments.options,
        "losses": runs.compared(trainings, data, "val_fold0", dict.fromkeys(others, first)),
    }


def main() -> None:
    """Train what is missing, then write the comparison."""
    parser = runs.parser_of(__doc__, "long_tail", images=5572)
    parser.add_argument("--start", type=Path, help="OUTPUT_DIR of the detector to go on from")
    parser.add_argument("--val-images", type=int, default=500, help="of the validation part, at most")
    parser.add_argument("--passes", type=int, default=2000, help="images that each training sees")
    arguments = parser.parse_args()
    if arguments.start is None and not arguments.smoke:
        parser.error("--start is needed: OUTPUT_DIR of the detector to go on from")
    runs.report("long_tail", arguments, measure, passes=24)


if __name__ == "__main__":
    main()
