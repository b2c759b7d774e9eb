"""``implantdet import``: arguments and run."""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from implantdet.data.importing import READERS, REJECTED, import_dataset
from implantdet.data.problems import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``implantdet import``."""
    parser.add_argument("src", metavar="SRC", type=Path, help="folder of the export, or one COCO or labelme file")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="dataset folder to make")
    parser.add_argument("--format", choices=sorted(READERS), help="format of SRC (default: detected)")
    parser.add_argument(
        "--map", metavar="OLD=NEW", action="append", default=[], help="rename a class; may be given several times"
    )
    parser.add_argument("--map-file", metavar="YAML", type=Path, help="rename classes by a file with lines `old: new`")
    parser.add_argument("--patients", metavar="CSV", type=Path, help="file with the columns file_name,patient_id")
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help=f"what to do about records that cannot be used: stop and write nothing (default), "
        f"or leave them out and list them in DIR/{REJECTED}",
    )


def run(args: argparse.Namespace) -> None:
    """Run ``implantdet import``."""
    report = import_dataset(
        args.src,
        args.out,
        source_format=args.format,
        names=_names(args.map, args.map_file),
        patients=args.patients,
        skip=args.on_error == "skip",
    )
    for note in report.notes:
        print(f"note: {note}")
    for problem in report.problems:
        print(f"rejected: {problem}")
    print(
        f"{args.out}: {report.images} images and {report.annotations} annotations, from format '{report.source_format}'"
    )
    if report.clipped:
        print(f"{report.clipped} annotations stood out of the frame (their boxes by a hair); cut off at its edge")
    if report.problems:
        print(
            f"{report.rejected_images} images and {report.rejected_annotations} annotations rejected; "
            f"{args.out / REJECTED} has {len(report.problems)} line(s) about them"
        )


def _names(pairs: list[str], path: Path | None) -> dict[str, str]:
    names: dict[str, str] = {}
    if path is not None:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or a date that no calendar has
            raise DataError(f"map file '{path}': {error}") from error
        if not isinstance(content, dict):
            raise DataError(f"map file '{path}': expected lines `old: new`; found {content!r}")
        for old, new in content.items():
            if not isinstance(new, str) or not new:
                raise DataError(f"map file '{path}': the new name of {old!r} must be a text; found {new!r}")
            names[str(old)] = new
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            raise DataError(f"--map {pair!r}: expected OLD=NEW")
        names[old] = new
    return names
