"""``implantdet draw``: arguments and run."""

from __future__ import annotations

import argparse
from pathlib import Path

from implantdet.report.draw import draw_dataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``implantdet draw``."""
    parser.add_argument("dir", metavar="DIR", type=Path, help="dataset folder")
    parser.add_argument("--out", required=True, metavar="OUT", type=Path, help="folder of the pictures")
    parser.add_argument("--predictions", metavar="FILE", type=Path, help="coco_instances_results.json of an evaluation")
    parser.add_argument("--implants", metavar="FILE", type=Path, help="implants.json of an evaluation")
    parser.add_argument(
        "--part", metavar="PART", help="test, val_fold0, train_fold0, … (default: every image that FILE tells of)"
    )
    parser.add_argument("--min-score", metavar="S", type=float, default=0.5, help="of what is drawn (default: 0.5)")
    parser.add_argument("--limit", metavar="N", type=int, help="number of pictures at most")
    parser.add_argument("--worst", metavar="N", type=int, help="the N images with the largest errors (with --implants)")


def run(args: argparse.Namespace) -> None:
    """Run ``implantdet draw``."""
    paths = draw_dataset(
        args.dir, args.out, args.predictions, args.part, args.min_score, args.limit, args.implants, args.worst
    )
    print(f"{args.out}: {len(paths)} pictures")
