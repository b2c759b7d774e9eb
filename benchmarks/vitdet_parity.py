"""Detectron2's own ViTDet beside our ViT, trained alike from random weights on the phantom: are they equally good?

    python benchmarks/vitdet_parity.py [--work DIR] [--images N] [--passes P] [--seeds 0 1 2] [--jobs J] [KEY VALUE …]
    python benchmarks/vitdet_parity.py --smoke

The accuracy beside the speed that head_speed.py measures: the same size of ViT, the same multi-label head, recipe,
images and seeds; only the backbone differs. Both are trained on fold 0 for P image passes and evaluated on its
validation part. An interrupted run goes on when it is started again with the same --work.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import _vitdet  # noqa: F401  registers Detectron2's ViT
import head_runs as runs
from _record import write_result

from implantdet.data.idd import load_folds

BACKBONES = {
    "detectron2's ViTDet": ("vitdet", "benchmarks/compared_train.py"),
    "ours": ("build_vit_sfp_backbone", runs.SCRIPT),
}
CONFIG = "configs/idd_tiny.yaml"
# Detectron2's ViT pads every image to a square of one size, in training and in evaluation.
WHOLE = (
    *("INPUT.CROP.ENABLED", "False", "MODEL.VIT.IMG_SIZE", "224"),
    *("INPUT.MIN_SIZE_TRAIN", "(224,)", "INPUT.MIN_SIZE_TEST", "224"),
)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train what is missing, then compare."""
    data = runs.make_phantom(arguments.work / "phantom", arguments.images)
    num_train = sum(len(fold) for fold in load_folds(data)["folds"][1:])
    epochs = arguments.passes / num_train
    length = ("SOLVER.MAX_EPOCHS", epochs, "SOLVER.WARMUP_EPOCHS", epochs / 12, "SOLVER.EVAL_EPOCHS", epochs / 2)
    trainings = {
        (name, seed): partial(
            runs.train,
            arguments.work / f"{backbone}_seed{seed}",
            data,
            (
                *("MODEL.BACKBONE.NAME", backbone, *WHOLE),
                *(*length, *arguments.options, "SEED", seed),
            ),
            config=CONFIG,
            script=script,
        )
        for seed in arguments.seeds
        for name, (backbone, script) in BACKBONES.items()
    }
    runs.in_parallel(arguments.jobs, list(trainings.values()))
    return {
        "config": CONFIG,
        "num_images": arguments.images,
        "num_train": num_train,
        "image_passes": arguments.passes,
        "seeds": arguments.seeds,
        "options": [*WHOLE, *arguments.options],
        "backbones": runs.compared(trainings, data, "val_fold0"),
    }


def main() -> None:
    """Train what is missing, then write the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("output/vitdet_parity"), help="data and runs")
    parser.add_argument("--images", type=int, default=2000, help="size of the phantom")
    parser.add_argument("--passes", type=int, default=6000, help="images that each training sees")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--smoke", action="store_true", help="minutes, in a temporary folder, no record")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="KEY VALUE … for both sides")
    arguments = parser.parse_args()
    if arguments.smoke:
        with tempfile.TemporaryDirectory() as folder:
            arguments.work, arguments.images, arguments.passes = Path(folder), 40, 24
            arguments.seeds, arguments.options = [0, 1], list(runs.SMOKE)
            print(measure(arguments))
    else:
        write_result("vitdet_parity", measure(arguments))


if __name__ == "__main__":
    main()
