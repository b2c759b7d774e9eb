"""What a CPU-sized training on the real public set reached: its validation AP and its course.

    python train_net.py --config-file configs/opg_vit_tiny.yaml DATASETS.ROOT PATH/TO/opg OUTPUT_DIR DIR
    python benchmarks/opg_training.py DIR

Reads what that training left in DIR, and writes ``results/opg_training.json`` and the curve as ``opg_training.png``.
The AP is that of four findings on panoramic radiographs, never of implants: see datasets/README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import yaml
from _curve import read_curve
from _record import RESULTS, write_result

SOLVER_KEYS = ("MAX_EPOCHS", "WARMUP_EPOCHS", "IMS_PER_BATCH", "BASE_LR", "WEIGHT_DECAY", "LAYER_DECAY", "EMA_DECAY")


def plot(curve: list[dict[str, Any]], path: Path) -> None:
    """Average precision and losses over the iterations."""
    iterations = [point["iteration"] for point in curve]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for key in ("AP", "AP50"):
        left.plot(iterations, [point[key] for point in curve], marker="o", label=f"validation {key}")
    for key in ("total_loss", "validation_loss"):
        right.plot(iterations, [point[key] for point in curve], marker="o", label=key.replace("_", " "))
    left.set_ylabel("percent")
    right.set_ylabel("loss")
    for axes in (left, right):
        axes.set_xlabel("iteration")
        axes.set_ylim(bottom=0)
        axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def median_seconds(output_dir: Path) -> float:
    """Seconds of an iteration, half of them took longer."""
    lines = (output_dir / "metrics.json").read_text(encoding="utf-8").splitlines()
    return statistics.median(scalars["time"] for scalars in map(json.loads, lines) if "time" in scalars)


def main() -> None:
    """Read, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="OUTPUT_DIR of the finished training")
    output_dir = parser.parse_args().output_dir
    cfg = yaml.safe_load((output_dir / "config.yaml").read_text(encoding="utf-8"))
    curve = read_curve(output_dir)
    best = max(curve, key=lambda point: point["AP"])
    path = write_result(
        "opg_training",
        {
            "train": cfg["DATASETS"]["TRAIN"],
            "vit": cfg["MODEL"]["VIT"] | {"weights": cfg["MODEL"]["WEIGHTS"]},
            "image_size": cfg["INPUT"]["MIN_SIZE_TEST"],
            "solver": {key: cfg["SOLVER"][key] for key in SOLVER_KEYS},
            "seed": cfg["SEED"],
            "median_seconds_per_iteration": median_seconds(output_dir),
            "results_of_last_evaluation": json.loads((output_dir / "results.json").read_text(encoding="utf-8")),
            "best_validation": best,
            "curve": curve,
        },
    )
    plot(curve, RESULTS / f"{path.stem}.png")
    print(f"best validation AP {best['AP']:.2f}, AP50 {best['AP50']:.2f} at iteration {best['iteration']}")


if __name__ == "__main__":
    main()
