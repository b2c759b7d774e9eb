"""``implantdet folds``: arguments and run."""

from __future__ import annotations

import argparse
from pathlib import Path

from tabulate import tabulate

from implantdet.data.audit import AUDIT, same_picture_pairs
from implantdet.data.folds import GROUP_KEYS, make_folds, part_table
from implantdet.data.idd import FOLDS, load_idd, read_json, write_json
from implantdet.data.problems import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``implantdet folds``."""
    parser.add_argument("dir", metavar="DIR", type=Path, help="dataset folder")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same folds (default: 0)")
    parser.add_argument(
        "--group-by", choices=GROUP_KEYS, help="what must not be split (default: patient_id, or else source_id)"
    )


def run(args: argparse.Namespace) -> None:
    """Run ``implantdet folds``."""
    content = load_idd(args.dir)
    pairs = same_picture_pairs(args.dir)
    folds = make_folds(content, seed=args.seed, group_by=args.group_by, same_picture=pairs)
    path = args.dir / FOLDS
    if path.exists() and read_json(path) != folds:
        raise DataError(
            f"{path} exists and is another split. Results on two test sets cannot be compared; remove it to go on."
        )
    write_json(path, folds)
    print(tabulate(part_table(content, folds), headers="firstrow"))
    print(f"\n{path}: grouped by {folds['group_by']}, seed {folds['seed']}")
    if pairs:
        print(f"{AUDIT}: images of its {len(pairs)} pairs of the same picture stay together")
    if folds["group_by"] == "image":
        print(
            "RISK: images of one patient may stand in several parts. A model can then recognise the patient, and its "
            "results say less about new patients than they seem to."
            + ("" if pairs else " `implantdet audit` finds at least copies of one picture; run it first.")
        )
