"""``implantdet audit``: arguments and run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tabulate import tabulate

from implantdet.data.audit import AUDIT, audit
from implantdet.data.idd import write_json

_NAMES = {"patient_id": "same patient", "source_id": "same source", "picture": "same picture", "any": "any of these"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``implantdet audit``."""
    parser.add_argument("dir", metavar="DIR", type=Path, help="dataset folder")


def run(args: argparse.Namespace) -> None:
    """Run ``implantdet audit``."""
    found = audit(args.dir)
    write_json(args.dir / AUDIT, found)
    rows = [
        [_NAMES[key], relation["groups"], relation["with_several_images"]]
        for key, relation in found["relations"].items()
    ]
    print(f"{found['num_images']} images that belong together:")
    print(tabulate(rows, headers=["", "groups", "with several images"]))
    for split, title in (("shipped", "Across the splits of the export:"), ("folds", "Across test set and folds:")):
        relations = {key: relation[split] for key, relation in found["relations"].items() if split in relation}
        if relations:
            print(f"\n{title}")
            _print_leaks(relations)
    _print_hash(found)
    print(f"\n{args.dir / AUDIT} lists all pairs of the same picture; `implantdet folds` keeps them together")


def _print_leaks(relations: dict[str, dict[str, Any]]) -> None:
    rows = []
    for key, leaks in relations.items():
        leaking = [f"{count} of {total}" for count, total in leaks["leaking_images"].values()]
        rows.append([_NAMES[key], leaks["groups_across_parts"], *leaking])
    parts = [f"leaking in {part}" for part in next(iter(relations.values()))["leaking_images"]]
    print(tabulate(rows, headers=["", "groups in several parts", *parts]))


def _print_hash(found: dict[str, Any]) -> None:
    counts = found["hash"]
    print(f"\nThe hash alone finds {counts['pairs_found']} pairs of the same picture.")
    deleted = counts["pairs_found"] - len(found["same_picture"])
    if deleted:
        print(f"{deleted} of them were deleted from {AUDIT} by hand, and stay out.")
    total = counts["same_source_pairs"]
    if total:
        recall = counts["same_source_pairs_found"] / total
        print(
            f"Of the {total} pairs with one source it finds {counts['same_source_pairs_found']} (recall {recall:.1%});"
        )
        others = counts["other_source_pairs_found"]
        print(f"it flags {others} pairs with different sources{':' if others else '.'}")
    for pair in found["same_picture"]:
        if pair.get("same_source_id") is False:
            print(f"  {' = '.join(pair['file_names'])} (agreement {pair['agreement']})")
