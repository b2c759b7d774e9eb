"""Groups of images that belong together, from pairs that do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Pair = tuple[int, int]


def connected_groups(image_ids: Sequence[int], pairs: Iterable[Pair]) -> list[int]:
    """Group number of each image: images that a chain of pairs connects have the same one.

    Raises:
        KeyError: a pair names an image that is not in ``image_ids``.
    """
    position = {image_id: index for index, image_id in enumerate(image_ids)}
    edges = np.array([(position[a], position[b]) for a, b in pairs], dtype=int).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), edges.T), shape=(len(position), len(position)))
    return connected_components(graph, directed=False)[1].tolist()


def patient_groups(dataset_dicts: Sequence[dict[str, Any]]) -> list[int]:
    """Group number of each image: those of one ``patient_id`` or ``source_id``, as far as they are known, share it."""
    # Two datasets may both count their images from 1.
    named = [{**record, "id": number} for number, record in enumerate(dataset_dicts)]
    pairs = [pair for key in ("patient_id", "source_id") for pair in equal_values(named, key)]
    return connected_groups(range(len(named)), pairs)


def equal_values(images: Iterable[dict[str, Any]], key: str) -> list[Pair]:
    """Pairs of image ids that connect all images with the same value of ``key``; images without it stay alone."""
    first: dict[str, int] = {}
    return [(first.setdefault(image[key], image["id"]), image["id"]) for image in images if key in image]
