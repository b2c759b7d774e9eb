"""Time ``make demo`` in a clone of this repository, and keep what it reached.

    python benchmarks/demo.py EMPTY_FOLDER

Writes ``results/demo.json``: minutes of the set-up and of the demo after it, and the figures of the demo's test
patients.
"""

from __future__ import annotations

import json

from _clone import clone_from_arguments, seconds_of_make
from _record import write_result


def main() -> None:
    """Measure and write."""
    clone = clone_from_arguments(__doc__)
    setup, demo = (seconds_of_make(clone, target) / 60 for target in (".venv/.ready", "demo"))
    results = json.loads((clone / "demo/run/demo_test/results.json").read_text(encoding="utf-8"))
    write_result("demo", {"setup_minutes": setup, "demo_minutes": demo, "results": results})


if __name__ == "__main__":
    main()
