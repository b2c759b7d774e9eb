"""The course of pre-trainings: losses, and what the collapse guard measures.

    python benchmarks/mim_curves.py RUN …

RUNs: OUTPUT_DIRs of pre-trainings by pixels (MAE) and by deep embeddings (MDE), of one or several seeds. Writes
``results/mim_curves.json`` and ``mim_curves.png``.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import yaml
from _curve import read_rows
from _record import RESULTS, write_result
from matplotlib.figure import Figure

NAMES = {"pixel": "MAE", "encoder": "MDE"}
BEFORE = re.compile(r"The target before training: TargetSpread\(std=(\S+), effective_rank=(\S+)\)")
SCALARS = ("total_loss", "loss_mim", "loss_pixel", "target_std", "target_effective_rank")
POINTS = 60  # of a curve; a point is the mean of the rows up to it
# What both predict, standardised pixels, and what MDE alone has. Title → scalar by target.
PANELS = {
    "loss of pixels": {"pixel": "total_loss", "encoder": "loss_pixel"},
    "loss of embeddings": {"encoder": "loss_mim"},
    "deviation of the target across images": {"encoder": "target_std"},
    "effective rank of the target": {"encoder": "target_effective_rank"},
}


def read_course(run: Path) -> dict[str, Any]:
    """Epochs and the scalars of a pre-training, thinned out."""
    cfg = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    rows = read_rows(run)
    per_epoch = (rows[-1]["iteration"] + 1) / cfg["SOLVER"]["MAX_EPOCHS"]
    told: dict[str, Any] = {"dataset": cfg["DATASETS"]["NAME"], "seed": cfg["SEED"]}
    told["target"] = cfg["MODEL"]["MIM"]["TARGET"]
    before = BEFORE.search((run / "log.txt").read_text(encoding="utf-8"))
    told["before_training"] = dict(zip(SCALARS[-2:], map(float, before.groups()), strict=True)) if before else {}
    for key in SCALARS:
        points = [((row["iteration"] + 1) / per_epoch, row[key]) for row in rows if key in row]
        size = max(1, len(points) // POINTS)
        chunks = [points[first : first + size] for first in range(0, len(points), size)]
        told[key] = [[chunk[-1][0], sum(value for _, value in chunk) / len(chunk)] for chunk in chunks]
    return told


def draw(courses: list[dict[str, Any]], path: Path) -> None:
    """A panel per scalar, a line per run."""
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    for axes, (title, scalars) in zip(figure.subplots(2, 2).ravel(), PANELS.items(), strict=True):
        labelled = set()
        for course in courses:
            points = course[scalars[course["target"]]] if course["target"] in scalars else []
            if points:
                label = NAMES[course["target"]]
                axes.plot(
                    *zip(*points, strict=True),
                    color="C1" if label == "MAE" else "C0",
                    alpha=0.7,
                    label=None if label in labelled else label,
                )
                labelled.add(label)
        axes.set(title=title, xlabel="epochs")
        axes.grid(alpha=0.3)
        if "loss" not in title:
            axes.set_ylim(bottom=0)
        axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Read, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    courses = [read_course(run) for run in parser.parse_args().runs]
    draw(courses, RESULTS / "mim_curves.png")
    write_result("mim_curves", {"runs": courses})


if __name__ == "__main__":
    main()
