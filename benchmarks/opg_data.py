"""What import, audit, folds and stats say of the real public set: the walk-through of datasets/README.md, repeated.

    python benchmarks/opg_data.py PATH/TO/real_opg

Writes ``results/opg_data.json``: the output of the four commands, the counts of the audit, and how far the weakest pair
of one source and the strongest pair of two are from the hash's threshold.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

from _record import write_result

from implantdet.data import phash
from implantdet.data.audit import audit

LOOSE = 0.4  # agreement above which pairs are looked at, to see what lies below the threshold


def run(*arguments: str | Path) -> dict[str, str | float]:
    """Run ``implantdet`` with these arguments; its output and seconds."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "implantdet.cli", *map(str, arguments)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {"command": f"implantdet {arguments[0]}", "output": output, "seconds": time.perf_counter() - start}


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of the export")
    source = parser.parse_args().source
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "opg"
        steps = [run("import", source, "--out", root), *(run(step, root) for step in ("audit", "folds", "stats"))]
        report = json.loads((root / "audit.json").read_text(encoding="utf-8"))
        with patch.object(phash, "THRESHOLD", LOOSE):
            pairs = audit(root)["same_picture"]
    agreement = {
        same: [pair["agreement"] for pair in pairs if pair["same_source_id"] is same] for same in (True, False)
    }
    result = {
        "steps": [step | {"output": str(step["output"]).replace(str(root), "datasets/opg")} for step in steps],
        "audit": {key: value for key, value in report.items() if key != "same_picture"},
        "weakest_agreement_of_one_source": min(agreement[True]),
        "strongest_agreement_of_two_sources": max(agreement[False], default=None),
        "threshold": phash.THRESHOLD,
    }
    for step in result["steps"]:
        print(step["output"])
    write_result("opg_data", result)


if __name__ == "__main__":
    main()
