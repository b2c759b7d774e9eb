"""What the steps between a trained part detector's heads and its detections are worth.

    python benchmarks/head_inference.py RUN DATA [--images N] [--slow-images M]
    python benchmarks/head_inference.py --smoke

RUN: OUTPUT_DIR of a detector that was trained on fold 0 of the phantom in DATA (implant_road.py's WORK/parts_mde_seed0
and WORK/phantom). The same weights are evaluated on the first N validation images with one step after the other, each
added to those before it; test-time augmentation, which takes as many times as long as it has versions, on the first M
of them, beside what there is without it; and so are other numbers of proposals. What is finished in RUN is not done
again.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import head_runs as runs
from _record import write_result
from _resumed import commit_of
from best_detector import by_modality
from head_curve import subset

from implantdet.evaluation.coco_evaluator import without_nan

Options = tuple[object, ...]
BARE: Options = (
    *("MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.5, "MODEL.PART_HEAD.OBJECTNESS_WEIGHT", 0.0),
    *("MODEL.PART_HEAD.BOX_VOTING_IOU", 0.0, "INPUT.PANORAMIC_ZOOM", 1.0, "TEST.TILE_SIZE", 0),
)
# Each is added to those above it.
STEPS: dict[str, Options] = {
    "NMS at IoU 0.5": (),
    "NMS at IoU 0.3": ("MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.3),
    "objectness in the scores": ("MODEL.PART_HEAD.OBJECTNESS_WEIGHT", 0.3),
    "box voting": ("MODEL.PART_HEAD.BOX_VOTING_IOU", 0.4),
    "panoramics twice as large, in tiles": ("INPUT.PANORAMIC_ZOOM", 2.0, "TEST.TILE_SIZE", 416),
}
AUGMENTED: dict[str, Options] = {
    "flips": ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (416,), "TEST.AUG.FLIP", True, "TEST.AUG.ROT90", False),
    "flips and quarter turns": ("TEST.AUG.ROT90", True),
}


# Of what the last step does; idd_tiny.yaml takes 200.
PROPOSALS: dict[str, Options] = {
    str(number): ("TEST.AUG.ENABLED", False, "MODEL.RPN.POST_NMS_TOPK_TEST", number) for number in (500, 200, 100, 50)
}


def measure(run: Path, data: Path, num_images: int, num_slow: int, last: Options = ()) -> dict[str, Any]:
    """Metrics after every step; ``last`` are options of all of them."""
    told: dict[str, Any] = {}
    options: Options = last
    for group, number, steps in (
        ("steps", num_images, STEPS),
        ("augmentation", num_slow, {"without": (), **AUGMENTED}),
        ("proposals", num_slow, PROPOSALS),
    ):
        folder = subset(data, run / f"first_{number}", num_val=number)
        truth = runs.ground_truth(folder, "val_fold0")
        told[group] = {"num_images": len(truth["images"]), "by_step": {}}
        for index, (step, added) in enumerate(steps.items()):
            options = (*options, *added)
            name = f"{group}_{number}/{index}"
            found = runs.detect(run, folder, "val_fold0", (*BARE, *options), name)
            seconds = runs.detecting_seconds(run / name)
            told[group]["by_step"][step] = {
                "all": without_nan(runs.metrics(truth, found)),
                **by_modality(folder, truth, found),
                "seconds_per_image": seconds / len(truth["images"]),
            }
    return told


def main() -> None:
    """Evaluate what is missing, then write the table."""
    parser = runs.parser_of_run(__doc__)
    parser.add_argument("--images", type=int, default=600, help="validation images, for all steps but the slow ones")
    parser.add_argument("--slow-images", type=int, default=100, help="validation images for the other groups")
    args = parser.parse_args()
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            data = runs.make_phantom(Path(folder) / "phantom", 60)
            run = runs.train(Path(folder) / "run", data, (*runs.lengths(1.0), *runs.HEAD, *runs.SMOKE))
            print(measure(run, data, 6, 4, ("MODEL.MASK_ON", False)))
    elif args.data is None:
        parser.error("RUN and DATA are needed")
    else:
        commit = {"training_commit": commit_of(args.run)}
        write_result("head_inference", measure(args.run, args.data, args.images, args.slow_images) | commit)


if __name__ == "__main__":
    main()
