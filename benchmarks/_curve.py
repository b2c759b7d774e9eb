"""The course of a training, from the ``metrics.json`` that it left in its OUTPUT_DIR."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_rows(output_dir: Path) -> list[dict[str, Any]]:
    """What a training wrote, row by row; iterations count from 0."""
    lines = (output_dir / "metrics.json").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def read_curve(output_dir: Path) -> list[dict[str, Any]]:
    """One point per evaluation: iteration, AP and AP50 in percent, and the last losses before it.

    Args:
        output_dir: of a training of ``train_net.py`` with one test set.
    """
    points, seen = [], {}
    for scalars in read_rows(output_dir):
        seen |= {key: value for key, value in scalars.items() if key in ("total_loss", "validation_loss")}
        if "bbox/AP" in scalars:
            points.append(
                {"iteration": scalars["iteration"], "AP": scalars["bbox/AP"], "AP50": scalars["bbox/AP50"]} | seen
            )
    return points
