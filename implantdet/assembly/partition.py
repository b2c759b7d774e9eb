"""Exact set partition: every part goes to one implant or is left unexplained, at the least total cost.

Letters: P parts, C candidates.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from implantdet.assembly.candidates import Candidates, gains
from implantdet.assembly.geometry import Array, Indices

FEW = 14  # parts of a component that are tried out sooner than a solver starts
NODE_LIMIT = 50  # of the branch-and-bound tree ; real layouts need one node
SLACK = 1e-9  # nats


def partition(candidates: Candidates, alone: Array) -> Indices:
    """Indices of the chosen candidates, disjoint in their parts.

    Most connected components are settled by a bound: the cost of a partition is the sum over parts of what each
    pays, which is at least its cheapest share of any candidate. If the candidates that offer those shares are
    disjoint, no partition is cheaper. Of the rest, small components are tried out part by part, and
    ``scipy.optimize.milp`` solves the large ones.

    Args:
        candidates: possible implants.
        alone: [P] cost of leaving a part unexplained.
    """
    members, costs = candidates
    if not len(costs):
        return np.empty(0, np.intp)
    which, column = np.nonzero(members >= 0)
    part = members[which, column]
    chosen, settled = _by_shares(which, part, costs, alone)
    if settled.all():
        return chosen
    label = _components(which, part, len(costs), len(alone))
    owner = label[members.max(axis=1)]
    hard = np.zeros(label.max() + 1, bool)
    hard[label[~settled]] = True
    gain = gains(candidates, alone)
    solution = [chosen[~hard[owner[chosen]]]]
    few = np.bincount(label, minlength=len(hard)) <= FEW
    for component in np.flatnonzero(hard & few):
        rows = np.flatnonzero(owner == component)
        solution.append(rows[_part_by_part(members[rows], gain[rows])])
    rows = np.flatnonzero((hard & ~few)[owner])
    if len(rows):
        solution.append(rows[_solve(members[rows], gain[rows])])
    return np.sort(np.concatenate(solution))


def _by_shares(which: Indices, part: Indices, costs: Array, alone: Array) -> tuple[Indices, NDArray[np.bool_]]:
    """Candidates that are the cheapest of all their parts, and [P] whether a part has its cheapest share."""
    count = np.bincount(which, minlength=len(costs))
    share = (costs / count)[which]
    cheapest = alone.copy()
    np.minimum.at(cheapest, part, share)
    order = np.lexsort((which, share, part))
    first = np.ones(len(order), bool)
    first[1:] = part[order][1:] != part[order][:-1]
    wins = order[first & (share[order] <= cheapest[part[order]] + SLACK)]
    chosen = np.bincount(which[wins], minlength=len(costs)) == count
    settled = cheapest >= alone - SLACK  # nothing is cheaper than to leave it
    settled[part[chosen[which]]] = True
    return np.flatnonzero(chosen), settled


def _components(which: Indices, part: Indices, num_candidates: int, num_parts: int) -> Indices:
    """[P] number of the connected component of every part; ``which`` is in order."""
    # Parts are joined through the candidates that hold them. Rows of candidates, then none of parts, are a matrix that
    # scipy need not sort first.
    rows = np.searchsorted(which, np.arange(num_candidates + num_parts + 1))
    size = num_candidates + num_parts
    graph = csr_array((np.ones(len(part)), num_candidates + part, rows), shape=(size, size))
    return connected_components(graph, directed=False)[1][num_candidates:]


def _part_by_part(members: Indices, gain: Array) -> Indices:
    """The disjoint rows of ``members`` with the largest total gain: each part is left, or taken by one of its rows.

    Only which of the later parts are taken already matters for what is best from there on, so that P parts need 2^P
    steps at most, and far fewer where rows hold near parts.
    """
    place = {part: k for k, part in enumerate(np.unique(members[members >= 0]).tolist())}
    starting: list[list[tuple[int, float, int]]] = [[] for _ in place]
    for row, (held, value) in enumerate(zip(members.tolist(), gain.tolist(), strict=True)):
        places = [place[part] for part in held if part >= 0]
        first = min(places)
        starting[first].append((sum(1 << (k - first) for k in places), value, row))

    @cache
    def best(position: int, taken: int) -> tuple[float, tuple[int, ...]]:  # the lowest bit stands for this position
        if position == len(starting):
            return 0.0, ()
        found = best(position + 1, taken >> 1)
        if taken & 1:
            return found
        for held, value, row in starting[position]:
            if not held & taken:
                total, rows = best(position + 1, (held | taken) >> 1)
                if total + value > found[0]:
                    found = total + value, (row, *rows)
        return found

    return np.array(best(0, 0)[1], np.intp)


def _solve(members: Indices, gain: Array) -> Indices:
    """The disjoint rows of ``members`` with the largest total gain."""
    which, column = np.nonzero(members >= 0)
    parts, part = np.unique(members[which, column], return_inverse=True)
    held = csr_array((np.ones(len(part)), (part, which)), shape=(len(parts), len(gain)))
    result = milp(
        -gain,
        integrality=np.ones(len(gain)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(held, -np.inf, 1),
        options={"node_limit": NODE_LIMIT},
    )
    if result.x is not None:
        return np.flatnonzero(result.x > 0.5)
    return _greedy(members, gain)


def _greedy(members: Indices, gain: Array) -> Indices:
    """Disjoint rows, best gain first; the answer where the solver reached its limit before it had any."""
    used: set[int] = {-1}
    chosen = []
    for row in np.argsort(-gain, kind="stable"):
        mine = set(members[row].tolist()) - {-1}
        if not mine & used:
            used |= mine
            chosen.append(row)
    return np.array(chosen, np.intp)
