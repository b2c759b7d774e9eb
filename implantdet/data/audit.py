"""Images that belong together, and those of them that stand on both sides of a split."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from implantdet.data.groups import Pair, connected_groups, equal_values
from implantdet.data.idd import FOLDS, IMAGES, load_folds, load_idd, read_json
from implantdet.data.phash import picture_hashes, same_pictures
from implantdet.data.problems import DataError, Problem

AUDIT = "audit.json"
ANEW = "remove it, and run `implantdet audit` again"


def audit(root: str | Path) -> dict[str, Any]:
    """Look for images of one patient, of one source, and of one picture, across the source's splits and our folds.

    Pairs that somebody has deleted from audit.json stay out.

    Returns:
        Content of audit.json (documented in ``datasets/README.md``).

    Raises:
        DataError: the dataset folder or some of its images cannot be read, or pairs were deleted of another audit.
    """
    root = Path(root)
    content = load_idd(root)
    images = content["images"]
    before = _audit_before(root / AUDIT)
    names = [root / IMAGES / image["file_name"] for image in images]
    hashes = picture_hashes(names, "hashing")
    readable = [found for found in hashes if not isinstance(found, DataError)]
    unreadable = [str(found).partition(": ") for found in hashes if isinstance(found, DataError)]
    if unreadable:
        raise DataError(
            f"{root}: {len(unreadable)} image(s) cannot be read",
            [Problem(file, "", reason) for file, _, reason in unreadable],
        )
    found = [
        {"image_ids": [images[i]["id"], images[j]["id"]], "agreement": agreement, **_relation(images[i], images[j])}
        for i, j, agreement in same_pictures(np.stack(readable))
    ]
    pictures = _without_deleted(root / AUDIT, before, found, len(images))
    pairs = {key: equal_values(images, key) for key in ("patient_id", "source_id")}
    pairs["picture"] = [tuple(pair["image_ids"]) for pair in pictures]
    pairs["any"] = [pair for related in pairs.values() for pair in related]
    splits: dict[str, dict[int, str]] = {}
    if any("split" in image for image in images):
        splits["shipped"] = {image["id"]: image["split"] for image in images if "split" in image}
    if (root / FOLDS).exists():
        folds = load_folds(root, content)
        parts = {"test": folds["test"], **{f"fold {k}": ids for k, ids in enumerate(folds["folds"])}}
        splits["folds"] = {image_id: part for part, ids in parts.items() for image_id in ids}
    known = [key for key in pairs if key in ("picture", "any") or any(key in image for image in images)]
    return {
        "num_images": len(images),
        "relations": {key: _summary(images, pairs[key], splits) for key in known},
        "hash": _hash_quality(images, found),
        "same_picture": pictures,
    }


class _Audit(NamedTuple):
    """What an earlier audit.json lists, and had found."""

    listed: set[frozenset[int]]
    num_images: int
    pairs_found: int


def _audit_before(path: Path) -> _Audit | None:
    if not path.exists():
        return None
    try:
        before = read_json(path)
        listed = {frozenset(pair["image_ids"]) for pair in before["same_picture"]}
        return _Audit(listed, before["num_images"], before["hash"]["pairs_found"])
    except (DataError, KeyError, TypeError) as error:
        raise DataError(f"{path}: malformed ({error!r}); {ANEW}") from error


def _without_deleted(
    path: Path, before: _Audit | None, pairs: list[dict[str, Any]], num_images: int
) -> list[dict[str, Any]]:
    """The pairs of the same picture without those that were deleted from the audit.json at ``path``."""
    if before is None or len(before.listed) == before.pairs_found:
        return pairs
    if (before.num_images, before.pairs_found) != (num_images, len(pairs)):
        raise DataError(
            f"{path}: lists {len(before.listed)} of the {before.pairs_found} pairs that were found in "
            f"{before.num_images} images, so some were deleted by hand; now {len(pairs)} are found in {num_images} "
            "images. Remove the file to begin anew"
        )
    return [pair for pair in pairs if frozenset(pair["image_ids"]) in before.listed]


def same_picture_pairs(root: str | Path) -> list[Pair]:
    """Pairs of image ids that ``root/audit.json`` lists as the same picture; none without the file.

    Raises:
        DataError: the file is malformed or names an image that the dataset lacks.
    """
    path = Path(root) / AUDIT
    if not path.exists():
        return []
    content = read_json(path)
    ids = {image["id"] for image in load_idd(root)["images"]}
    try:
        pairs = [(first, second) for first, second in (pair["image_ids"] for pair in content["same_picture"])]
        unknown = {image_id for pair in pairs for image_id in pair} - ids
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: malformed ({error!r}); {ANEW}") from error
    if unknown:
        raise DataError(f"{path}: names images that the dataset lacks: {sorted(unknown)}; {ANEW}")
    return pairs


def _relation(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Names of a pair, and whether it has the same patient and source, where both are known."""
    relation: dict[str, Any] = {"file_names": [first["file_name"], second["file_name"]]}
    for key in ("patient_id", "source_id"):
        if key in first and key in second:
            relation[f"same_{key}"] = first[key] == second[key]
    return relation


def _summary(images: list[dict[str, Any]], pairs: list[Pair], splits: dict[str, dict[int, str]]) -> dict[str, Any]:
    """Counts of groups, and per split of the images with a relative in another part of it."""
    ids = [image["id"] for image in images]
    group_of = dict(zip(ids, connected_groups(ids, pairs), strict=True))
    sizes = Counter(group_of.values())
    summary: dict[str, Any] = {"groups": len(sizes), "with_several_images": sum(size > 1 for size in sizes.values())}
    for name, part_of in splits.items():
        parts: dict[int, set[str]] = defaultdict(set)
        for image_id, part in part_of.items():
            parts[group_of[image_id]].add(part)
        leaking = Counter(part for image_id, part in part_of.items() if len(parts[group_of[image_id]]) > 1)
        summary[name] = {
            "groups_across_parts": sum(len(stands_in) > 1 for stands_in in parts.values()),
            "leaking_images": {
                part: [leaking[part], total] for part, total in sorted(Counter(part_of.values()).items())
            },
        }
    return summary


def _hash_quality(images: list[dict[str, Any]], pictures: list[dict[str, Any]]) -> dict[str, int]:
    """How far pictures found by their hash alone agree with the sources that are known."""
    sources = Counter(image["source_id"] for image in images if "source_id" in image)
    return {
        "same_source_pairs": sum(size * (size - 1) // 2 for size in sources.values()),
        "same_source_pairs_found": sum(pair.get("same_source_id") is True for pair in pictures),
        "other_source_pairs_found": sum(pair.get("same_source_id") is False for pair in pictures),
        "pairs_found": len(pictures),
    }
