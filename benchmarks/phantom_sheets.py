"""Write a contact sheet of every preset, plain and with boxes, to benchmarks/results.

python benchmarks/phantom_sheets.py [--seed S]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from implantdet.phantom.contact_sheet import write_sheets
from implantdet.phantom.generate import generate

RESULTS = Path(__file__).parent / "results"
IMAGES = {"idd": 45, "mini": 45, "panoramic": 6, "unseen": 45}  # as many patients: a sheet shows every third or all


def main() -> None:
    """Render and tile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for preset, images in IMAGES.items():
            out = generate(Path(folder) / f"phantom_{preset}", images, images, seed=args.seed, preset=preset)
            print(*write_sheets(out, RESULTS), sep="\n")


if __name__ == "__main__":
    main()
