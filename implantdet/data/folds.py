"""One fixed test set and four folds for cross-validation, with no group on both sides (paper section 4.1)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from implantdet.data.groups import Pair, connected_groups, equal_values
from implantdet.data.idd import ANNOTATIONS, NUM_FOLDS
from implantdet.data.problems import DataError

GROUP_KEYS = ("patient_id", "source_id", "image")


def choose_group_key(images: list[dict[str, Any]]) -> str:
    """``patient_id`` or ``source_id``, the first that every image has.

    Raises:
        DataError: there is none.
    """
    for key in GROUP_KEYS[:2]:
        if all(key in image for image in images):
            return key
    counts = ", ".join(f"{sum(key in image for image in images)} have a {key}" for key in GROUP_KEYS[:2])
    raise DataError(
        f"{ANNOTATIONS}: of {len(images)} images, {counts}. Folds need one of them for every image, or images of one "
        "patient get on both sides of a split. Import with --patients CSV, or accept that with --group-by image."
    )


def make_folds(
    content: dict[str, Any], *, seed: int = 0, group_by: str | None = None, same_picture: Iterable[Pair] = ()
) -> dict[str, Any]:
    """Split the images into a test set and four folds, a fifth each, stratified by class.

    Args:
        content: what :func:`implantdet.data.idd.load_idd` returns.
        seed: the same seed gives the same folds.
        group_by: one of :data:`GROUP_KEYS`; None takes the first that every image has. Images with an equal value of
            the other key stay together, too, unless it is ``image``.
        same_picture: pairs of image ids that stay together in any case; ``implantdet audit`` finds them.

    Returns:
        Content of folds.json: ``seed``, ``group_by``, ``test`` and ``folds``, with sorted image ids.

    Raises:
        DataError: nothing to group by, or fewer groups than parts.
    """
    images = content["images"]
    group_by = group_by or choose_group_key(images)
    pairs = list(same_picture)
    if group_by != "image":
        lacking = sum(group_by not in image for image in images)
        if lacking:
            raise DataError(f"{ANNOTATIONS}: {lacking} of {len(images)} images have no {group_by}")
        # The other key counts as far as it is known: two sources of one patient stay together.
        pairs += [pair for key in GROUP_KEYS[:2] for pair in equal_values(images, key)]
    ids = [image["id"] for image in images]
    groups = connected_groups(ids, pairs)
    if len(set(groups)) <= NUM_FOLDS:
        raise DataError(f"{len(images)} images in {len(set(groups))} group(s); expected {NUM_FOLDS + 1} groups or more")
    parts = _split(content, dict(zip(ids, groups, strict=True)), seed)
    return {"seed": seed, "group_by": group_by, "test": parts[0], "folds": parts[1:]}


def _split(content: dict[str, Any], group_of: dict[int, int], seed: int) -> list[list[int]]:
    # What is stratified are boxes, because an image has boxes of several classes; and images, as one class more,
    # so that the parts have as many images too.
    image_class = -1
    ids = list(group_of)
    owners = ids + [annotation["image_id"] for annotation in content["annotations"]]
    index = {category["id"]: number for number, category in enumerate(content["categories"])}
    labels = [image_class] * len(ids) + [index[annotation["category_id"]] for annotation in content["annotations"]]
    splitter = StratifiedGroupKFold(NUM_FOLDS + 1, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer than five boxes cannot be in every part; the table of counts shows it.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        splits = list(splitter.split(np.zeros(len(labels)), labels, [group_of[owner] for owner in owners]))
    return [sorted({owners[sample] for sample in held_out}) for _, held_out in splits]


def part_table(content: dict[str, Any], folds: dict[str, Any]) -> list[list[str]]:
    """Rows for the screen: images, and boxes of each class, in the test set and in each fold."""
    parts = {"test": folds["test"], **{f"fold {k}": ids for k, ids in enumerate(folds["folds"])}}
    rows = [["", *parts], ["images", *(str(len(ids)) for ids in parts.values())]]
    part_of = {image_id: part for part, ids in parts.items() for image_id in ids}
    for category in content["categories"]:
        owned = [part_of[a["image_id"]] for a in content["annotations"] if a["category_id"] == category["id"]]
        rows.append([category["name"], *(str(owned.count(part)) for part in parts)])
    return rows
