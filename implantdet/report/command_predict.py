"""``implantdet predict``: arguments and run."""

from __future__ import annotations

import argparse
from pathlib import Path

from implantdet.report.predict import predict_radiographs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``implantdet predict``."""
    parser.add_argument(
        "run_dir", metavar="RUN", type=Path, help="OUTPUT_DIR of a training of parts, with its assembler.json"
    )
    parser.add_argument("images", metavar="IMAGE", type=Path, nargs="+", help="radiographs, or folders of them")
    parser.add_argument("--out", required=True, metavar="OUT", type=Path, help="new folder of the results")
    parser.add_argument("--min-score", metavar="S", type=float, default=0.3, help="of what is drawn (default: 0.3)")
    parser.add_argument("--mm-per-pixel", metavar="MM", type=_positive, help="scale of the radiographs, if it is known")


def run(args: argparse.Namespace) -> None:
    """Run ``implantdet predict``."""
    number = predict_radiographs(args.run_dir, args.images, args.out, args.min_score, args.mm_per_pixel)
    pictures = "1 picture" if number == 1 else f"{number} pictures"
    print(f"{args.out}: {pictures}, and implants.json. They are hints for a dentist, not diagnoses.")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text}, expected a number above 0")
    return value
