"""What each ingredient of the part detector is worth, on the phantom: three seeds, paired intervals.

    python benchmarks/head_ablation.py [--work DIR] [--images N] [--epochs E] [--seeds 0 1 2] [--jobs J] [KEY VALUE …]
    python benchmarks/head_ablation.py --smoke

Every setting adds one thing to the one before it. All are trained on fold 0 for the same number of images and evaluated
on its validation part. The first is Detectron2's own detector, whose speed head_speed.py measures. An interrupted run
goes on when it is started again with the same --work.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import _vitdet  # noqa: F401  registers Detectron2's ViT
import head_runs as runs
import numpy as np
from _record import write_result
from tqdm import tqdm

STEPS = {
    "detectron2's ViTDet and head": ("MODEL.BACKBONE.NAME", "vitdet", "MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
    "our ViT, stock softmax head": ("MODEL.BACKBONE.NAME", "build_vit_sfp_backbone"),
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


def paired_difference(
    truth: dict[str, Any],
    before: list[list[dict[str, Any]]],
    after: list[list[dict[str, Any]]],
    resamples: int,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Mean difference over seeds for each metric, with the 95 % interval of a bootstrap over images and seeds.

    Args:
        truth: ground truth.
        before: detections of each seed with one setting.
        after: detections of the same seeds with the other.
        resamples: number of bootstrap samples.
        seed: of the bootstrap.
    """
    rng = np.random.default_rng(seed)

    def difference(sample: dict[str, Any], one: list[Any], other: list[Any]) -> dict[str, float]:
        pairs = [(runs.metrics(sample, a), runs.metrics(sample, b)) for a, b in zip(one, other, strict=True)]
        return {key: float(np.nanmean([b[key] - a[key] for a, b in pairs])) for key in pairs[0][0]}

    draws = []
    for _ in tqdm(range(resamples), desc="bootstrap", leave=False):
        chosen = rng.choice(len(before), len(before))
        sample, redrawn = runs.resampled(truth, [before[k] for k in chosen] + [after[k] for k in chosen], rng)
        draws.append(difference(sample, redrawn[: len(chosen)], redrawn[len(chosen) :]))
    mean = difference(truth, before, after)
    return {
        key: {
            "mean": mean[key],
            "low": float(np.nanpercentile([draw[key] for draw in draws], 2.5)),
            "high": float(np.nanpercentile([draw[key] for draw in draws], 97.5)),
        }
        for key in mean
    }


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
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--smoke", action="store_true", help="minutes, in a temporary folder, no record")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="KEY VALUE … for every setting")
    arguments = parser.parse_args()
    if arguments.smoke:
        with tempfile.TemporaryDirectory() as folder:
            arguments.work, arguments.images, arguments.epochs = Path(folder), 40, 1.0
            arguments.seeds, arguments.resamples, arguments.options = [0, 1], 3, list(runs.SMOKE)
            print(measure(arguments))
    else:
        write_result("head_ablation", measure(arguments))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All settings and seeds, each beside the setting before it."""
    data = runs.make_phantom(arguments.work / "phantom", arguments.images)
    lengths = (
        *("SOLVER.MAX_EPOCHS", arguments.epochs, "SOLVER.WARMUP_EPOCHS", arguments.epochs / 12),
        *("SOLVER.EVAL_EPOCHS", arguments.epochs / 2, "TEST.DETECTIONS_PER_IMAGE", 300),
    )

    def training(number: int, options: list[str], seed: int) -> Path:
        run = arguments.work / f"{number}_seed{seed}"
        script = "benchmarks/vitdet_train.py" if number == 0 else runs.SCRIPT
        options = [*lengths, *options, *arguments.options, "SEED", seed]
        return runs.train(run, data, options, script=script)

    # Seeds outermost: what is interrupted has all settings of the seeds that are done.
    grid = list(itertools.product(arguments.seeds, enumerate(settings().items())))
    tasks = [partial(training, number, options, seed) for seed, (number, (_, options)) in grid]
    trained = iter(runs.in_parallel(arguments.jobs, tasks))
    found_by = {(name, seed): runs.detect(next(trained), data, "val_fold0") for seed, (_, (name, _)) in grid}

    truth = runs.ground_truth(data, "val_fold0")
    table: dict[str, Any] = {}
    before: list[list[dict[str, Any]]] | None = None
    for name, options in settings().items():
        found = [found_by[name, seed] for seed in arguments.seeds]
        table[name] = {
            "options": options,
            "by_seed": {seed: runs.metrics(truth, one) for seed, one in zip(arguments.seeds, found, strict=True)},
            "axes": mean_accuracy([runs.axis_accuracy(truth, one) for one in found]),
        }
        if before is not None:
            table[name]["difference"] = paired_difference(truth, before, found, arguments.resamples)
        before = found
    return {
        "num_images": arguments.images,
        "epochs": arguments.epochs,
        "seeds": arguments.seeds,
        "resamples": arguments.resamples,
        "options": arguments.options,
        "settings": table,
    }


if __name__ == "__main__":
    main()
