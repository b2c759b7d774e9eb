"""``implantdet predict``: arguments and run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from implantdet.data.checks import MODALITIES
from implantdet.data.dicom import MM_PER_PIXEL
from implantdet.report.predict import predict_radiographs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``implantdet predict``."""
    parser.add_argument(
        "run_dir", metavar="RUN", type=Path, help="OUTPUT_DIR of a training of parts, with its assembler.json"
    )
    parser.add_argument("images", metavar="IMAGE", type=Path, nargs="+", help="radiographs, or folders of them")
    parser.add_argument("--out", required=True, metavar="OUT", type=Path, help="folder of the results")
    parser.add_argument(
        "--min-score", metavar="S", type=_within(0, 1), default=0.3, help="of what is drawn (default: 0.3)"
    )
    parser.add_argument(
        "--mm-per-pixel", metavar="MM", type=_within(*MM_PER_PIXEL), help="scale of all the radiographs, if it is known"
    )
    parser.add_argument(
        "--modality", choices=MODALITIES, help="of all the radiographs; a training may have seen panoramics enlarged"
    )
    parser.add_argument("--lines", metavar="FILE", type=Path, help="product lines instead of those of the training")
    parser.add_argument(
        "--resume", action="store_true", help="go on in OUT, where an earlier run of the same arguments was interrupted"
    )


def run(args: argparse.Namespace) -> None:
    """Run ``implantdet predict``."""
    number = predict_radiographs(
        args.run_dir, args.images, args.out, args.min_score, args.mm_per_pixel, args.lines, args.modality, args.resume
    )
    pictures = "1 picture" if number == 1 else f"{number} pictures"
    print(f"{args.out}: {pictures}, index.html to look at them, and implants.json. Hints for a dentist, not diagnoses.")


def _within(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"found {text}, expected a number from {low} to {high}")
        return value

    return parse
