"""The paper's grouping by k-means (section 3.1), kept for comparison, in two readings.

``k_means``: as many clusters as the most frequent third has parts. ``k_means_paper``: as many clusters as parts, as
the paper's text says, then clusters merged by fixed thresholds on distance and overlap.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import pdist, squareform
from sklearn.cluster import KMeans

from implantdet.assembly.candidates import INSIDE, WHOLE, Parts
from implantdet.assembly.geometry import Array, Indices, centres, intersection_area, iou, sizes, union
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
        merge_distance: clusters are merged of which the centres lie no further apart, in mean larger sides of a part.
        merge_overlap: clusters are merged whose boxes share at least this much of the smaller one, in (0, 1].
    """
    thirds = np.flatnonzero(parts.slots != WHOLE)
    if not len(thirds):
        return _members(parts, thirds, thirds)
    boxes = parts.boxes[thirds]
    labels = _cluster(boxes, len(boxes))
    clusters = np.array([union(boxes[labels == k]) for k in range(labels.max() + 1)])
    near = squareform(pdist(centres(clusters))) <= merge_distance * sizes(boxes).max(axis=1).mean()
    area = np.prod(sizes(clusters), axis=1)
    shared = intersection_area(clusters[:, None], clusters)
    overlapping = shared >= merge_overlap * np.minimum(area[:, None], area)
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
    """Clusters as rows of members: of one third the part most costly to leave out, then the most central.

    A whole implant belongs to the cluster that lies in it and that it overlaps best, a cluster to one at most.
    """
    members = np.full((labels.max() + 1 if len(labels) else 0, len(SLOTS)), -1)
    points = centres(parts.boxes[thirds])
    middles = np.array([points[labels == k].mean(axis=0) for k in range(len(members))]).reshape(-1, 2)
    # Two parts alone are as far from their middle; rounding must not choose between them.
    off_cluster = np.hypot(*(points - middles[labels]).T).round(6)
    off_all = np.hypot(*(points - points.sum(axis=0) / max(len(points), 1)).T)
    order = np.lexsort((-off_all, -off_cluster, parts.alone[thirds]))  # a later one takes the place
    members[labels[order], parts.slots[thirds[order]]] = thirds[order]
    wholes = np.flatnonzero(parts.slots == WHOLE)
    boxes = np.array([union(parts.boxes[row[row >= 0]]) for row in members]).reshape(-1, 4)
    # Of the thirds, not of the box round them, which one on the wrong side makes large.
    inside = intersection_area(parts.boxes[:, None], parts.boxes[wholes])
    area = np.prod(sizes(parts.boxes), axis=1)
    of_row = [row[row >= 0] for row in members]
    share = np.array([inside[row].sum(axis=0) / area[row].sum() for row in of_row]).reshape(len(members), len(wholes))
    overlap = np.where(share >= INSIDE, iou(boxes[:, None], parts.boxes[wholes]), 0)
    rows, mine = linear_sum_assignment(-overlap)
    rows, mine = rows[overlap[rows, mine] > 0], mine[overlap[rows, mine] > 0]
    members[rows, WHOLE] = wholes[mine]
    alone = np.full((len(wholes) - len(mine), len(SLOTS)), -1)
    alone[:, WHOLE] = np.delete(wholes, mine)
    return np.concatenate([members, alone])
