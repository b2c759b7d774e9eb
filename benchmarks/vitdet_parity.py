"""Detectron2's own ViTDet beside our ViT, trained alike from random weights on the phantom: are they equally good?

    python benchmarks/vitdet_parity.py [--work DIR] [--images N] [--passes P] [--seeds 0 1 2] [--jobs J] [KEY VALUE …]
    python benchmarks/vitdet_parity.py --smoke

The accuracy beside the speed that head_speed.py measures: the same size of ViT, the same multi-label head, recipe,
images and seeds; only the backbone differs. Both are trained on fold 0 for P image passes and evaluated on its
validation part. An interrupted run goes on when it is started again with the same --work.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import _vitdet  # noqa: F401  registers Detectron2's ViT
import head_runs as runs

BACKBONES = {
    "detectron2's ViTDet": ("vitdet", "benchmarks/compared_train.py"),
    "ours": ("build_vit_sfp_backbone", runs.SCRIPT),
}
CONFIG = "configs/idd_tiny.yaml"
# Detectron2's ViT pads every image to a square of one size, in training and in evaluation.
WHOLE = (
    *("INPUT.CROP.ENABLED", "False", "MODEL.VIT.IMG_SIZE", "224"),
    *("INPUT.MIN_SIZE_TRAIN", "(224,)", "INPUT.MIN_SIZE_TEST", "224", "INPUT.PANORAMIC_ZOOM", "1.0"),
)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train what is missing, then compare."""
    data = runs.make_phantom(arguments.work / "phantom", arguments.images)
    num_train = runs.num_train(data)
    length = runs.lengths(arguments.passes / num_train)
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
    parser = runs.parser_of(__doc__, "vitdet_parity", images=2000)
    parser.add_argument("--passes", type=int, default=6000, help="images that each training sees")
    runs.report("vitdet_parity", parser.parse_args(), measure, passes=24)


if __name__ == "__main__":
    main()
