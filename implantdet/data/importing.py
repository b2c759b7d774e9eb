"""Bring a foreign dataset into the IDD format: read, check every record, copy the images, write one folder."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from implantdet.data.convert import Converted, convert
from implantdet.data.idd import IMAGES, read_json, save_idd, write_json
from implantdet.data.import_coco import read_coco
from implantdet.data.import_labelme import read_labelme
from implantdet.data.import_yolo import read_yolo
from implantdet.data.patients import apply_patients
from implantdet.data.problems import DataError, Problem
from implantdet.data.source import Source

REJECTED = "rejected.json"
READERS: dict[str, Callable[[Path], Source]] = {"coco": read_coco, "yolo": read_yolo, "labelme": read_labelme}


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes:
        source_format: a key of :data:`READERS`.
        images: images written.
        annotations: annotations written.
        rejected_images: image records left out.
        rejected_annotations: annotation records left out, those of rejected images included.
        clipped: annotations that stood out of the frame, their boxes by up to a pixel, and were cut off at its edge.
        problems: a line about everything that was left out.
        notes: what was left aside although nothing is wrong with it.
    """

    source_format: str
    images: int
    annotations: int
    rejected_images: int
    rejected_annotations: int
    clipped: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def import_dataset(
    src: str | Path,
    out: str | Path,
    *,
    source_format: str | None = None,
    names: Mapping[str, str] | None = None,
    patients: str | Path | None = None,
    skip: bool = False,
) -> ImportReport:
    """Write the dataset in ``src`` to the new folder ``out``, in the IDD format.

    Args:
        src: folder, or COCO file, that was exported.
        out: folder to make; it must not exist, or be empty.
        source_format: a key of :data:`READERS`; detected if None.
        names: new names of classes, by their old names; the other classes keep theirs.
        patients: CSV file with the columns ``file_name`` and ``patient_id``.
        skip: leave out what cannot be used and list it in ``out/rejected.json``, instead of stopping.

    Raises:
        DataError: a record cannot be used (and not ``skip``), nothing is left, or an argument is wrong;
            nothing is written.
    """
    src, out = Path(src), Path(out).resolve()
    if not src.exists():
        raise DataError(f"source '{src}': there is no such folder or file")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"output '{out}' exists already; remove it or choose another --out")
    _check_place(out)
    source_format = source_format or detect_format(src)
    source = READERS[source_format](src.resolve())
    _rename(source, names or {})
    if patients is not None:
        apply_patients(source, Path(patients))
    read_annotations = sum(len(image.objects) for image in source.images) + source.lost_annotations
    converted = convert(source)
    problems = source.problems
    if problems and not skip:
        raise DataError(
            f"{src}: {len(problems)} problem(s), nothing written; mend them, or leave them out with --on-error skip",
            problems,
        )
    if not converted.paths:
        notes = [Problem("note", "", note) for note in source.notes]
        raise DataError(f"{src}: no usable image of format '{source_format}'", [*problems, *notes])
    _write(out, source, converted)
    images, annotations = len(converted.paths), len(converted.content["annotations"])
    return ImportReport(
        source_format,
        images,
        annotations,
        rejected_images=len(source.images) + source.lost_images - images,
        rejected_annotations=read_annotations - annotations,
        clipped=converted.clipped,
        problems=tuple(problems),
        notes=tuple(source.notes),
    )


def detect_format(src: Path) -> str:
    """A key of :data:`READERS`, from the first JSON file with a known layout, or from YOLO's class lists.

    Raises:
        DataError: neither is there.
    """
    unreadable = None
    for path in [src] if src.is_file() else sorted(src.rglob("*.json")):
        try:
            content = read_json(path)
        except DataError as error:
            unreadable = unreadable or error
            continue
        if isinstance(content, dict) and "shapes" in content:
            return "labelme"
        if isinstance(content, dict) and "images" in content and "annotations" in content:
            return "coco"
    if any(path.name in ("data.yaml", "labels", "classes.txt", "obj.names") for path in src.rglob("*")):
        return "yolo"
    suffixes = Counter(path.suffix or path.name for path in src.rglob("*") if path.is_file())
    found = ", ".join(f"{number} {suffix}" for suffix, number in suffixes.most_common(5)) or "no files"
    raise unreadable or DataError(
        f"{src}: format not recognised; found {found}, expected images with annotations in a .json (COCO or labelme) "
        "or in .txt files with class names (YOLO). If they are there, name their format: "
        f"--format ({', '.join(READERS)})"
    )


def _check_place(out: Path) -> None:
    """Refuse a folder that could not be put there when all is read and copied."""
    if os.path.ismount(out):  # Path.is_mount knows no Windows before Python 3.12
        raise DataError(f"output '{out}' is the root of a volume, which no new folder can replace; name one below it")
    parent = next(folder for folder in out.parents if folder.exists())
    if not os.access(parent, os.W_OK):
        raise DataError(f"output '{out}': nothing can be written in '{parent}'; choose another --out, or ask its owner")


def _rename(source: Source, names: Mapping[str, str]) -> None:
    for old in names:
        if old not in source.classes:
            raise DataError(f"map: no class {old!r} in the source; it has {', '.join(map(repr, source.classes))}")
    renamed: dict[str, str] = {}
    for name, supercategory in source.classes.items():
        renamed.setdefault(names.get(name, name), supercategory)
    source.classes = renamed
    for image in source.images:
        for item in image.objects:
            item.label = names.get(item.label, item.label)


def _write(out: Path, source: Source, converted: Converted) -> None:
    """Fill a temporary folder beside ``out`` and rename it when it is whole."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        # In containers every process has the same number: what one that was killed left must not get in.
        shutil.rmtree(temporary, ignore_errors=True)
        pairs = zip(converted.paths, converted.content["images"], strict=True)
        for path, image in tqdm(pairs, desc="copying images", unit="image", total=len(converted.paths), disable=None):
            target = temporary / IMAGES / image["file_name"]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.root / path, target)
        save_idd(temporary, converted.content)
        if source.problems:
            write_json(temporary / REJECTED, [asdict(problem) for problem in source.problems])
        if out.exists():  # empty, as checked; Windows does not rename over a folder
            out.rmdir()
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
