"""The dataset folder ("IDD format"): read, check, write. ``datasets/README.md`` documents every field.

``DIR/annotations.json`` is COCO, ``DIR/images/`` holds the radiographs, ``DIR/folds.json`` the split.
Boxes are ``[x, y, w, h]`` in pixels, with (0, 0) at the top left corner of the top left pixel.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from implantdet.data.checks import annotation_fault, escapes, image_fault
from implantdet.data.files import written_whole
from implantdet.data.problems import DataError, Problem

ANNOTATIONS, IMAGES, FOLDS = "annotations.json", "images", "folds.json"
NUM_FOLDS = 4
# Path, time and size of the files whose records this process has checked: a training reads its dataset many times.
_CHECKED: set[tuple[str, int, int]] = set()
HOW_TO_GET = (
    "Make it from your radiographs with `implantdet import SRC --out DIR` and `implantdet folds DIR`, or from "
    "synthetic ones with `implantdet phantom --preset idd --out DIR`; datasets/README.md tells more."
)


def write_json(path: Path, content: object) -> None:
    """Write ``content`` under a temporary name, then rename: a reader never sees half a file.

    Raises:
        DataError: a text has half a character in it, which JSON can spell (``\\ud83d``) and UTF-8 cannot.
    """
    try:
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(content, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 20) : error.end + 20]
        raise DataError(f"{path}: a text has half a character in it, near {around!r}; mend it") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: the file is no JSON, or no UTF-8.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or a number of thousands of digits
        raise DataError(f"{path}: not a JSON file: {error}") from error


def require_file(root: str | Path, name: str) -> Path:
    """``root/name``, if it is there.

    Raises:
        DataError: folder or file is missing; the message says how to make it.
    """
    path = Path(root) / name
    if not path.is_file():
        what = f"it has no {name}" if Path(root).is_dir() else "there is no such folder"
        raise DataError(f"dataset folder '{root}': {what}. {HOW_TO_GET}")
    return path


def load_idd(root: str | Path) -> dict[str, Any]:
    """Read and check ``root/annotations.json``.

    Returns:
        COCO content with the keys ``images``, ``annotations`` and ``categories``.

    Raises:
        DataError: a file is missing, or a record breaks the format; the message lists the records.
    """
    path = require_file(root, ANNOTATIONS)
    stat = path.stat()
    stamp = (str(path.resolve()), stat.st_mtime_ns, stat.st_size)
    content: dict[str, Any] = read_json(path)
    is_known = stamp in _CHECKED
    problems = [] if is_known else [Problem(ANNOTATIONS, record, reason) for record, reason in faults(content)]
    if not problems:
        folder = path.parent / IMAGES
        missing = [image["file_name"] for image in content["images"] if not (folder / image["file_name"]).is_file()]
        problems = [Problem(f"{IMAGES}/{name}", "", "missing image") for name in missing]
        if not content["images"]:
            problems = [Problem(ANNOTATIONS, "", "'images' is empty; expected one or more")]
    if problems:
        raise DataError(f"{path}: {len(problems)} problem(s)", problems)
    _CHECKED.add(stamp)
    return content


def save_idd(root: str | Path, content: dict[str, Any]) -> None:
    """Check ``content`` and write it to ``root/annotations.json``.

    Raises:
        DataError: a record breaks the format; nothing is written.
    """
    problems = [Problem(ANNOTATIONS, record, reason) for record, reason in faults(content)]
    if problems:
        raise DataError(f"{root}: the content has {len(problems)} problem(s)", problems)
    write_json(Path(root) / ANNOTATIONS, content)


def load_folds(root: str | Path, content: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read ``root/folds.json``: ``seed``, ``group_by``, ``test`` (image ids) and ``folds`` (four lists of image ids).

    Args:
        root: dataset folder.
        content: what :func:`load_idd` returned, if the folds are to be held against its images.

    Raises:
        DataError: the file is missing or malformed, an image stands in two parts, or is not in ``content``.
    """
    path = require_file(root, FOLDS)
    folds = read_json(path)
    shaped = isinstance(folds, dict) and isinstance(folds.get("folds"), list)
    parts = [folds.get("test"), *folds["folds"]] if shaped else []
    ids = [image_id for part in parts if isinstance(part, list) for image_id in part]
    if len(parts) != 1 + NUM_FOLDS or not all(isinstance(part, list) for part in parts) or not all(map(_is_id, ids)):
        fault = f"expected the list 'test' and {NUM_FOLDS} lists 'folds' of image ids"
    elif len(set(ids)) != len(ids):
        fault = "an image stands in more than one part"
    else:
        unknown = set(ids) - {image["id"] for image in content["images"]} if content else ()
        fault = f"{len(unknown)} image(s) are not in {ANNOTATIONS}" if unknown else ""
    if fault:
        raise DataError(f"{path}: {fault}; remove it and run `implantdet folds`")
    return folds


def faults(content: object) -> list[tuple[str, str]]:
    """(record, reason) for everything in ``content`` that breaks the format."""
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) and all(isinstance(record, dict) for record in content[key])
        for key in ("images", "annotations", "categories")
    ):
        return [("", "expected an object with the lists 'images', 'annotations' and 'categories' of objects")]
    images, annotations, categories = content["images"], content["annotations"], content["categories"]
    found = [
        *_repeated("image", "id", images),
        *_repeated("image", "file_name", images),
        *_repeated("annotation", "id", annotations),
        *_repeated("category", "id", categories),
        *_repeated("category", "name", categories),
    ]
    if found:
        return found
    for image in images:
        reason = image_fault(image) or escapes(image["file_name"])
        if reason:
            found.append((f"image {image['id']}", reason))
    for category in categories:
        if not isinstance(category.get("supercategory", ""), str):
            reason = f"'supercategory' must be a text; found {category['supercategory']!r}"
            found.append((f"category {category['id']}", reason))
    if found:
        return found
    by_id = {image["id"]: image for image in images}
    category_ids = {category["id"] for category in categories}
    for annotation in annotations:
        if not _is_id(annotation.get("image_id")) or annotation["image_id"] not in by_id:
            reason = f"annotation of an unknown image: image_id {annotation.get('image_id')!r}"
        elif not _is_id(annotation.get("category_id")) or annotation["category_id"] not in category_ids:
            reason = f"unknown class: category_id {annotation.get('category_id')!r}"
        else:
            reason = annotation_fault(annotation, by_id[annotation["image_id"]])
        if reason:
            found.append((f"annotation {annotation['id']}", reason))
    return found


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63  # as arrays hold them


def _repeated(kind: str, key: str, records: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    seen: set[object] = set()
    found = []
    for index, record in enumerate(records):
        value = record.get(key)
        if not (_is_id(value) if key == "id" else isinstance(value, str)):
            expected = "a whole number" if key == "id" else "a text"
            found.append((f"{kind} number {index + 1}", f"'{key}' must be {expected}; found {value!r}"))
        elif value in seen:
            found.append((f"{kind} number {index + 1}", f"duplicate {key}: {value!r}"))
        else:
            seen.add(value)
    return found
