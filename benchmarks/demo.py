"""Time ``make demo`` in a clone of this repository, and keep what it reached.

    python benchmarks/demo.py EMPTY_FOLDER

Writes ``results/demo.json``: minutes with and without the set-up, and the figures of the demo's test patients.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path

from _record import write_result

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, help="where to clone this repository to")
    clone = parser.parse_args().clone
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    minutes = []
    for target in (".venv/.ready", "demo"):
        start = time.perf_counter()
        subprocess.run(["make", target], cwd=clone, check=True)
        minutes.append((time.perf_counter() - start) / 60)
    results = json.loads((clone / "demo/run/demo_test/results.json").read_text(encoding="utf-8"))
    write_result("demo", {"setup_minutes": minutes[0], "demo_minutes": minutes[1], "results": results})


if __name__ == "__main__":
    main()
