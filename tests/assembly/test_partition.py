import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from implantdet.assembly import partition as module
from implantdet.assembly.candidates import Candidates
from implantdet.assembly.partition import partition


def cheapest(members, costs, alone):
    """Least total cost of a partition, by trying every subset of candidates."""
    best = alone.sum()
    for size in range(1, len(costs) + 1):
        for chosen in itertools.combinations(range(len(costs)), size):
            used = [part for row in chosen for part in members[row] if part >= 0]
            if len(set(used)) == len(used):
                rest = np.delete(alone, used).sum()
                best = min(best, costs[list(chosen)].sum() + rest)
    return best


def test_the_greedy_answer_takes_nothing_that_costs_more_than_it_saves():
    members = np.array([[0, 1, -1], [1, 2, -1], [2, 3, -1], [4, -1, -1], [5, -1, -1]])
    gain = np.array([2.0, 3.0, 1.0, -1.0, 0.0])
    assert module._greedy(members, gain).tolist() == [1]


def total(members, costs, alone, chosen):
    used = [part for row in chosen for part in members[row] if part >= 0]
    assert len(set(used)) == len(used), "two implants share a part"
    return costs[chosen].sum() + np.delete(alone, used).sum()


def problem(seed, num_parts=7, num_candidates=10):
    rng = np.random.default_rng(seed)
    members = np.full((num_candidates, 4), -1)
    for row in members:
        size = rng.integers(1, 4)
        row[:size] = rng.choice(num_parts, size, replace=False)
    return members, rng.uniform(0, 10, num_candidates), rng.uniform(1, 6, num_parts)


@pytest.mark.parametrize("states", [0, 4000])  # by the solver, part by part
@pytest.mark.parametrize("seed", range(12))
def test_no_partition_is_cheaper(monkeypatch, states, seed):
    monkeypatch.setattr(module, "STATES", states)
    members, costs, alone = problem(seed)
    chosen = partition(Candidates(members, costs), alone)
    assert total(members, costs, alone, chosen) == pytest.approx(cheapest(members, costs, alone))


@pytest.mark.parametrize("seed", range(30))
def test_part_by_part_is_as_good_as_the_solver(monkeypatch, seed):
    """Crowded neighbours, and candidates that cost more than they save."""
    rng = np.random.default_rng(seed)
    members = np.full((80, 4), -1)
    for row in members:
        size, start = rng.integers(1, 5), rng.integers(0, 18)
        row[:size] = rng.permutation(np.arange(start, start + 6))[:size]
    costs, alone = rng.uniform(0, 12, 80), rng.uniform(1, 6, 24)
    monkeypatch.setattr(module, "NODE_LIMIT", 10_000)
    totals = []
    for states, solver in ((0, module.milp), (10**6, None)):
        monkeypatch.setattr(module, "STATES", states)
        monkeypatch.setattr(module, "milp", solver)
        totals.append(total(members, costs, alone, partition(Candidates(members, costs), alone)))
    assert totals[0] == pytest.approx(totals[1])


@pytest.mark.parametrize("seed", range(30))
def test_costs_of_any_size_are_settled(seed):
    """Where the greedy answer is the best, rounding must not push it over the bound."""
    members, costs, alone = problem(seed, num_parts=12, num_candidates=30)
    expected = partition(Candidates(members, costs), alone)
    for factor in (1e-6, 1e7 / 3, 1e12 / 7):
        assert partition(Candidates(members, factor * costs), factor * alone).tolist() == expected.tolist()


@pytest.mark.parametrize("seed", range(10))
def test_no_row_saves_more_than_its_parts_by_their_prices(seed):
    members, costs, alone = problem(seed, num_parts=12, num_candidates=30)
    which, column = np.nonzero(members >= 0)
    part = np.unique(members[which, column], return_inverse=True)[1]
    gain = np.append(alone, 0)[np.unique(members[members >= 0])[part]]
    gain = np.bincount(which, gain) - costs
    prices, losses = module._prices(which, part, gain)
    assert (prices >= 0).all()
    assert losses == pytest.approx(np.bincount(which, prices[part]) - gain)
    assert losses.min() >= -1e-9
    # No price can be lower: it is 0, or a row of the part has no loss.
    least = np.full(len(prices), np.inf)
    np.minimum.at(least, part, losses[which])
    assert (np.minimum(least, prices) < 1e-9).all()


@pytest.mark.parametrize("seed", range(20))
def test_components_are_scipys(seed):
    members, costs, _ = problem(seed, num_parts=30, num_candidates=3 + seed)
    which, column = np.nonzero(members >= 0)
    part = members[which, column]
    joined = coo_array((np.ones(len(part)), (part, 30 + which)), shape=(30 + len(costs),) * 2)
    expected = connected_components(joined, directed=False)[1][:30]
    found = module._components(which, part, len(costs), 30)
    assert ((found[:, None] == found) == (expected[:, None] == expected)).all()


def test_a_long_chain_is_one_component():
    rows = np.stack([np.arange(99), np.arange(1, 100)], axis=1)
    order = np.random.default_rng(0).permutation(100)
    found = module._components(np.repeat(np.arange(99), 2), order[rows.ravel()], 99, 100)
    assert (found == 0).all()


def test_clear_layouts_need_no_solver(monkeypatch):
    monkeypatch.setattr(module, "milp", None)
    monkeypatch.setattr(module, "STATES", 0)
    members = np.array([[0, 1, 2, -1], [0, 1, -1, -1], [3, -1, -1, -1], [2, 3, -1, -1]])
    chosen = partition(Candidates(members, np.array([1.0, 4.0, 3.0, 9.0])), np.full(4, 12.0))
    assert chosen.tolist() == [0, 2]


def test_what_takes_too_many_steps_goes_to_the_solver(monkeypatch):
    members = np.array([[0, 1, -1, -1], [1, 2, -1, -1], [0, 2, -1, -1]])  # each excludes the others
    problem = Candidates(members, np.array([1.0, 1.1, 1.2])), np.full(3, 2.0)
    monkeypatch.setattr(module, "STATES", 0)
    assert partition(*problem).tolist() == [0]
    monkeypatch.setattr(module, "milp", None)
    with pytest.raises(TypeError):
        partition(*problem)


def test_parts_may_be_left_unexplained():
    members = np.array([[0, 1, -1, -1]])
    assert partition(Candidates(members, np.array([5.0])), np.array([2.0, 2.0, 1.0])).tolist() == []
    assert partition(Candidates(members, np.array([3.0])), np.array([2.0, 2.0, 1.0])).tolist() == [0]


def test_no_candidates():
    assert partition(Candidates(np.empty((0, 4), int), np.empty(0)), np.array([3.0])).tolist() == []


def test_identical_candidates():
    members = np.array([[0, 1, -1, -1]] * 3 + [[2, -1, -1, -1]] * 2)
    chosen = partition(Candidates(members, np.ones(5)), np.full(3, 5.0))
    assert sorted(members[chosen].max(axis=1).tolist()) == [1, 2]


def test_the_solver_may_give_up(monkeypatch, caplog):
    """At its limit without an answer, the best candidates first; still disjoint. It is said."""
    monkeypatch.setattr(module, "STATES", 0)
    monkeypatch.setattr(module, "milp", lambda *_, **__: SimpleNamespace(x=None, status=1))
    for seed in range(5):
        caplog.clear()
        members, costs, alone = problem(seed)
        total(members, costs, alone, partition(Candidates(members, costs), alone))
        assert "The solver stopped after 50 nodes" in caplog.text
