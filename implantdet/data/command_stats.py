"""``implantdet stats``: arguments and run."""

from __future__ import annotations

import argparse
from pathlib import Path

from tabulate import tabulate

from implantdet.data.idd import load_idd, write_json
from implantdet.data.stats import dataset_stats, plot_stats, stats_rows

JSON, PNG = "stats.json", "stats.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``implantdet stats``."""
    parser.add_argument("dir", metavar="DIR", type=Path, help="dataset folder")


def run(args: argparse.Namespace) -> None:
    """Run ``implantdet stats``."""
    content = load_idd(args.dir)
    stats = dataset_stats(content)
    write_json(args.dir / JSON, stats)
    plot_stats(content, stats, args.dir / PNG)
    print(tabulate(stats_rows(stats), headers="firstrow", disable_numparse=True, colalign=("left", *["right"] * 6)))
    per_image, sizes = stats["boxes_per_image"], stats["sizes"]
    print(f"\n{stats['images']} images, {stats['boxes']} boxes, {stats['masks']} of them with a mask")
    print(
        f"boxes per image: mean {per_image['mean']:.1f}, median {per_image['median']:g}, "
        f"from {per_image['min']:g} to {per_image['max']:g}; {per_image['none']} images without any"
    )
    print(f"sizes as COCO counts them: {sizes['small']} small, {sizes['medium']} medium, {sizes['large']} large")
    if stats["imbalance"] is not None:
        print(f"imbalance: {stats['imbalance']:.1f} boxes of the most frequent class for one of the rarest")
    if stats["classes_without_boxes"]:
        print(f"classes without boxes: {', '.join(stats['classes_without_boxes'])}")
    print(f"{args.dir / JSON}, {args.dir / PNG}: written")
