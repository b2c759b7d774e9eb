"""A fresh clone of this repository, and how long ``make`` takes in it."""

from __future__ import annotations

import argparse
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def clone_from_arguments(description: str | None) -> Path:
    """Clone into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, help="where to clone this repository to")
    clone: Path = parser.parse_args().clone
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    return clone


def seconds_of_make(clone: Path, target: str) -> float:
    """Seconds that a target takes."""
    start = time.perf_counter()
    subprocess.run(["make", target], cwd=clone, check=True)
    return time.perf_counter() - start
