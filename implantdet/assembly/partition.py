"""Exact set partition: every part goes to one implant or is left unexplained, at the least total cost.

Letters: P parts, C candidates.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, reverse_cuthill_mckee

from implantdet.assembly.candidates import Candidates, gains
from implantdet.assembly.geometry import Array, Indices

logger = logging.getLogger(__name__)

FEW = 10  # parts that need no order
STATES = 4000  # that are looked at in a component before a solver takes over
NODE_LIMIT = 50  # of the branch-and-bound tree ; real layouts need one node
SLACK = 1e-9  # nats


def partition(candidates: Candidates, alone: Array) -> Indices:
    """Indices of the chosen candidates, disjoint in their parts.

    Most connected components are settled by a bound: the cost of a partition is the sum over parts of what each
    pays, which is at least its cheapest share of any candidate. If the candidates that offer those shares are
    disjoint, no partition is cheaper. The rest are tried out part by part, and ``scipy.optimize.milp`` solves those
    that would take too many steps.

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
    too_many = np.zeros(len(hard), bool)
    for component in np.flatnonzero(hard):
        rows = np.flatnonzero(owner == component)
        found = _part_by_part(members[rows], gain[rows])
        if found is None:
            too_many[component] = True
        else:
            solution.append(rows[found])
    rows = np.flatnonzero(too_many[owner])
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


def _part_by_part(members: Indices, gain: Array) -> Indices | None:
    """The disjoint rows of ``members`` with the largest total gain; None if that would take too many steps.

    Part after part is left, or taken by one of its rows. Only which of the later parts are taken already matters for
    what is best from there on, so that one way to each such state is kept: few, where rows hold parts that follow each
    other. What loses more against the prices of ``_prices`` than the greedy answer does is dropped.
    """
    which, column = np.nonzero(members >= 0)
    parts, part = np.unique(members[which, column], return_inverse=True)
    prices, losses = _prices(which, part, gain)
    order = np.arange(len(parts))
    if len(parts) > FEW:
        held = np.zeros((len(gain), len(parts)))
        held[which, part] = 1
        order = reverse_cuthill_mckee(csr_array(held.T @ held), symmetric_mode=True)  # parts of a row follow each other
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    bits = [0] * len(gain)
    for row, position in zip(which.tolist(), place[part].tolist(), strict=True):
        bits[row] |= 1 << position
    starting: list[list[tuple[int, float, int]]] = [[] for _ in parts]
    for row, (mine, loss) in enumerate(zip(bits, losses.tolist(), strict=True)):
        first = (mine & -mine).bit_length() - 1
        starting[first].append((mine >> first, loss, row))
    most = prices.sum()
    limit = most - gain[_greedy(members, gain)].sum() + SLACK * max(1.0, most)  # the larger, the more is rounded off

    # Which of the parts from here on are taken, the lowest bit is this one → least loss, and the rows (nested pairs).
    states: dict[int, tuple[float, tuple[Any, ...]]] = {0: (0.0, ())}
    number = 0
    for position, price in enumerate(prices[order].tolist()):
        following: dict[int, tuple[float, tuple[Any, ...]]] = {}
        for taken, (loss, rows) in states.items():
            if taken & 1:
                ways = [(taken, loss, rows)]
            else:
                ways = [(taken, loss + price, rows)]
                ways += [(taken | h, loss + x, (row, rows)) for h, x, row in starting[position] if not h & taken]
            for later, total, chosen in ways:
                if total <= limit and (later >> 1 not in following or total < following[later >> 1][0]):
                    following[later >> 1] = total, chosen
        states = following
        number += len(states)
        if number > STATES:
            return None
    found, rows = [], states[0][1]
    while rows:
        row, rows = rows
        found.append(row)
    return np.array(found, np.intp)


def _prices(which: Indices, part: Indices, gain: Array) -> tuple[Array, Array]:
    """What every part may save, [P], so that no row saves more than its parts together; and how much less, [C].

    Each is the largest share of a row to begin with, then as much less as its rows allow (dual ascent).
    """
    prices = np.zeros(part.max() + 1)
    np.maximum.at(prices, part, (gain / np.bincount(which))[which])
    losses = np.bincount(which, prices[part]) - gain
    by_part = np.argsort(part, kind="stable")
    rows_of = np.split(which[by_part], np.flatnonzero(np.diff(part[by_part])) + 1)
    for index in np.argsort(-prices, kind="stable").tolist():
        less = min(losses[rows_of[index]].min(), prices[index])
        prices[index] -= less
        losses[rows_of[index]] -= less
    return prices, losses


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
    if result.status != 0:
        logger.warning(
            "The solver stopped after %d nodes: %d parts that crowd are grouped as well as it found, which need not be "
            "the best grouping.",
            *(NODE_LIMIT, len(parts)),
        )
    if result.x is not None:
        return np.flatnonzero(result.x > 0.5)
    return _greedy(members, gain)


def _greedy(members: Indices, gain: Array) -> Indices:
    """Disjoint rows, best gain first; the answer where the solver reached its limit before it had any."""
    used: set[int] = {-1}
    chosen = []
    for row in np.argsort(-gain, kind="stable")[: np.count_nonzero(gain > 0)]:
        mine = set(members[row].tolist()) - {-1}
        if not mine & used:
            used |= mine
            chosen.append(row)
    return np.array(chosen, np.intp)
