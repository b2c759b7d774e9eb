"""Measure what `make test` costs before its first test: a fresh environment, from the locks, in an empty folder.

python benchmarks/setup_time.py EMPTY_FOLDER
"""

import argparse
import subprocess
import time
from pathlib import Path

from _record import write_result

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Measure and write ``results/setup_time.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, help="where to clone this repository to")
    clone = parser.parse_args().clone
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    seconds = []
    for _ in range(2):  # the second run finds everything in place
        start = time.perf_counter()
        subprocess.run(["make", ".venv/.ready"], cwd=clone, check=True)
        seconds.append(time.perf_counter() - start)
    size = sum(file.lstat().st_size for file in (clone / ".venv").rglob("*") if file.is_file())
    write_result(
        "setup_time",
        {"first_run_seconds": seconds[0], "second_run_seconds": seconds[1], "venv_gigabytes": size / 1e9},
    )


if __name__ == "__main__":
    main()
