"""The paper's grouping by k-means (section 3.1), kept for comparison, in two readings.

``k_means``: as many clusters as the most frequent third has parts. ``k_means_paper``: as many clusters as parts, as
the paper's text says, then clusters merged by fixed thresholds on distance and overlap.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import KMeans

from implantdet.assembly.candidates import WHOLE, Parts
from implantdet.assembly.geometry import Array, Indices, centres, intersection_area, sizes, union
from implantdet.structures import SLOTS

MAX_ITER = 300  # the paper's
NUM_INIT = 10  # starts, of which the best counts: one alone hangs on the order of the parts


def k_means(parts: Parts) -> Indices:
    """[implants, 4] members."""
    thirds = np.flatnonzero(parts.slots != WHOLE)
    if not len(thirds):
        return _members(parts, thirds, thirds)
    return _members(parts, thirds, _cluster(parts.boxes[thirds], int(np.bincount(parts.slots[thirds]).max())))


def k_means_paper(parts: Parts, merge_distance: float, merge_overlap: float) -> Indices:
    """[implants, 4] members.

    Args:
        parts: of one image.
        merge_distance: clusters whose boxes lie no further apart are merged, in mean larger sides of a part's box.
        merge_overlap: clusters are merged whose boxes share at least this much of the smaller one, in (0, 1].
    """
    thirds = np.flatnonzero(parts.slots != WHOLE)
    if not len(thirds):
        return _members(parts, thirds, thirds)
    boxes = parts.boxes[thirds]
    labels = _cluster(boxes, len(boxes))
    clusters = np.array([union(boxes[labels == k]) for k in range(labels.max() + 1)])
    a, b = clusters[:, None], clusters[None]
    gap = np.maximum(np.maximum(a[..., :2], b[..., :2]) - np.minimum(a[..., 2:], b[..., 2:]), 0)
    near = np.hypot(gap[..., 0], gap[..., 1]) <= merge_distance * sizes(boxes).max(axis=1).mean()
    area = np.prod(sizes(clusters), axis=1)
    overlapping = intersection_area(a, b) >= merge_overlap * np.minimum(area[:, None], area[None])
    merged = connected_components(near | overlapping, directed=False)[1]
    return _members(parts, thirds, merged[labels])


def _cluster(boxes: Array, k: int) -> Indices:
    """[P] cluster of every box, numbered from 0 without gaps."""
    points = centres(boxes)
    # k-means++ draws by row: in this order it draws the same points however the image is turned.
    order = np.argsort(np.hypot(*(points - points.mean(axis=0)).T), kind="stable")
    # Parts on one spot make one cluster; scikit-learn warns where there are fewer points than clusters.
    k = min(k, len(np.unique(points, axis=0)))
    k_means = KMeans(k, init="k-means++", n_init=NUM_INIT, max_iter=MAX_ITER, random_state=0)
    labels = np.empty(len(points), np.intp)
    labels[order] = k_means.fit_predict(points[order])
    return np.unique(labels, return_inverse=True)[1]


def _members(parts: Parts, thirds: Indices, labels: Indices) -> Indices:
    """Clusters as rows of members: of one third the part most costly to leave out, then the most central."""
    members = np.full((labels.max() + 1 if len(labels) else 0, len(SLOTS)), -1)
    points = centres(parts.boxes[thirds])
    middles = np.array([points[labels == k].mean(axis=0) for k in range(len(members))]).reshape(-1, 2)
    # Two parts alone are as far from their middle; rounding must not choose between them.
    off_cluster = np.hypot(*(points - middles[labels]).T).round(6)
    off_all = np.hypot(*(points - points.sum(axis=0) / max(len(points), 1)).T)
    order = np.lexsort((-off_all, -off_cluster, parts.alone[thirds]))  # a later one takes the place
    members[labels[order], parts.slots[thirds[order]]] = thirds[order]
    wholes = np.flatnonzero(parts.slots == WHOLE)
    free = np.ones(len(wholes), bool)
    for row in members:
        box = union(parts.boxes[row[row >= 0]])
        share = intersection_area(box, parts.boxes[wholes]) / np.prod(sizes(parts.boxes[wholes]), axis=1)
        share = np.where(free, share, 0)
        if share.size and share.max() > 0:
            row[WHOLE] = wholes[share.argmax()]
            free[share.argmax()] = False
    alone = np.full((free.sum(), len(SLOTS)), -1)
    alone[:, WHOLE] = wholes[free]
    return np.concatenate([members, alone])
