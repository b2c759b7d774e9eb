"""Patient ids from a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path

from implantdet.data.problems import DataError, Problem
from implantdet.data.source import Source, SourceImage, composed, original_name

COLUMNS = ("file_name", "patient_id")


def apply_patients(source: Source, path: Path) -> None:
    """Give every image of ``source`` the patient that ``path`` names.

    ``file_name`` is the image's path in the source, its bare name, or the name (with or without suffix) of the
    image that Roboflow copied. An image without a patient or with several gets a fault; a line without an
    image, a note.

    Raises:
        DataError: the file is missing, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)  # a quote that is never closed is an error
            rows = list(reader)
            columns = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"patients file '{path}': {error}") from error
    if not set(COLUMNS) <= set(columns):
        raise DataError(
            f"patients file '{path}': expected the columns {', '.join(COLUMNS)}; found {', '.join(columns)}"
        )
    patients: dict[str, list[str]] = {}  # several, where lines contradict each other
    for number, row in enumerate(rows, start=2):
        name, patient = composed(row["file_name"] or "").strip(), (row["patient_id"] or "").strip()
        if not name or not patient:
            source.problems.append(Problem(path.name, f"record {number}", "file_name or patient_id is empty"))
        elif name not in patients:
            patients[name] = [patient]
        elif patient not in patients[name]:
            reason = f"duplicate file_name {name!r} with another patient: {patient!r}, before {patients[name][0]!r}"
            source.problems.append(Problem(path.name, f"record {number}", reason))
            patients[name].append(patient)
    used: set[str] = set()
    for image in source.images:
        found = [key for key in _keys(image) if key in patients]
        used.update(found)
        if found:
            image.fields["patient_id"] = patients[found[0]][0]
            if len({patient for key in found for patient in patients[key]}) > 1:
                named = ", ".join(f"{key!r} is {' and '.join(map(repr, patients[key]))}" for key in found)
                image.fault = image.fault or f"{path.name} names several patients: {named}"
        elif image.fault is None:
            image.fault = f"no patient: {path.name} has no line for {image.path}"
    if len(used) < len(patients):
        source.notes.append(f"{path.name}: {len(patients) - len(used)} line(s) name no image of the source")


def _keys(image: SourceImage) -> list[str]:
    keys = [str(image.path), image.path.name]
    name = original_name(image.path)
    if name is not None:
        keys += [name.name, f"{name.stem}{image.path.suffix}", name.stem]
    return [composed(key) for key in keys]
