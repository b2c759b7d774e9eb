"""``implantdet phantom``: arguments and run."""

from __future__ import annotations

import argparse
import os

from implantdet.data.idd import IMAGES
from implantdet.phantom.contact_sheet import write_sheets
from implantdet.phantom.generate import generate
from implantdet.phantom.presets import PRESETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``implantdet phantom``."""
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make; it must not exist")
    parser.add_argument("--images", type=int, metavar="N", help="number of images (default: the preset's)")
    parser.add_argument(
        "--patients",
        type=int,
        metavar="P",
        help="number of patients (default: one per 4 images; of panoramics, per 2)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="the same seed gives the same bytes (default: 0)"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="W", help="processes (default: all cores)"
    )
    parser.add_argument(
        "--preset", default="idd", choices=sorted(PRESETS), help="mixture of systems and sizes (default: idd)"
    )
    parser.add_argument(
        "--sheets", metavar="DIR", help="also write contact sheets to this folder: plain, and with boxes and names"
    )


def run(args: argparse.Namespace) -> None:
    """Run ``implantdet phantom``."""
    out = generate(args.out, args.images, args.patients, args.seed, args.workers, args.preset)
    print(f"{out}: {sum(1 for _ in (out / IMAGES).iterdir())} radiographs")
    if args.sheets:
        for path in write_sheets(out, args.sheets):
            print(path)
