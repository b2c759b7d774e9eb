"""Fit of designs: by hand, what must not count, and how well it tells unseen makers in a simulation."""

from functools import cache

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from implantdet.assembly.design_fit import SLACK, design_fit
from implantdet.assembly.line_table import build_table, count_examples
from implantdet.assembly.ranking import Ranker
from implantdet.assembly.ranking_calibration import Sample, calibrate
from implantdet.phantom.lines import default_lines
from implantdet.phantom.presets import IDD_SYSTEMS
from implantdet.taxonomy import default_taxonomy

TAXONOMY = default_taxonomy()
KNOWN = tuple(line for line in default_lines() if line.system != "other")
UNSEEN = tuple(line for line in default_lines() if line.system == "other")

# Two lines; an axis of two values, and one of three on which the lines agree.
LIKELIHOOD = np.array([[0.9, 0.3], [0.1, 0.7], [0.5, 0.5], [0.3, 0.3], [0.2, 0.2]])
PRIOR = np.array([0.25, 0.75])


def fit(*votes):
    return design_fit(np.array([votes], float), LIKELIHOOD, PRIOR, [2, 3])[0]


def by_hand(value, of_best, known, chance):
    """From the probability of what was read, of all values under the best line, and under known and any designs."""
    usual = np.sum(of_best[0] * np.log(of_best[1]))
    variance = np.sum(of_best[0] * (np.log(of_best[1]) - usual) ** 2)
    return (np.log(value) - usual) / np.sqrt(variance + SLACK) + np.log(known / chance)


def test_a_sure_reading_by_hand():
    first = np.array([0.9, 0.1])
    known = 0.25 * 0.9 + 0.75 * 0.3
    assert fit(1, 0, 0, 0, 0) == pytest.approx(by_hand(0.9, (first, first), known, (known + 0.5) / 2))


def test_an_unsure_reading_with_a_rival_by_hand():
    # 0.4 and 0.2 of the votes; what is left gives 0.2 to each value. The first line fits best.
    first, second = 0.4 * 0.9 + 0.2 * 0.1 + 0.2, 0.4 * 0.3 + 0.2 * 0.7 + 0.2
    assert first > second
    possible = 0.6 * np.array([0.9, 0.1]) + 0.2
    mixture = 0.25 * LIKELIHOOD[:2, 0] + 0.75 * LIKELIHOOD[:2, 1]
    any_design = np.dot([0.4, 0.2], (mixture + 0.5) / 2) + 0.2
    expected = by_hand(first, (np.array([0.9, 0.1]), possible), 0.25 * first + 0.75 * second, any_design)
    assert fit(0.4, 0.2, 0, 0, 0) == pytest.approx(expected)


def test_axes_that_were_not_read_count_for_nothing_and_hardly_read_ones_hardly():
    assert np.isnan(fit(0, 0, 0, 0, 0))
    alone = design_fit(np.array([[1.0, 0.0]]), LIKELIHOOD[:2], PRIOR, [2])[0]
    assert fit(1, 0, 0, 0, 0) == pytest.approx(alone)
    assert fit(1, 0, 0, 0, 1e-6) == pytest.approx(alone, abs=1e-5)
    assert fit(1e-6, 0, 0, 0, 0) == pytest.approx(0, abs=1e-5)


def draw(rng, lines):
    """A line, systems as often as in preset idd, and the design of one of its lengths."""
    share = np.array([IDD_SYSTEMS.get(line.system, 1) for line in lines], float)
    share /= [sum(line.system == other.system for other in lines) for line in lines]
    line = lines[rng.choice(len(lines), p=share / share.sum())]
    return line, line.attributes(rng.choice(line.lengths), line.diameters[0])


@cache
def usual_values():
    """Axis → share of every value among known implants: what a detector guesses that cannot see."""
    designs = [draw(np.random.default_rng(seed), KNOWN)[1] for seed in range(500)]
    counts = {axis: [sum(d[axis.key] == v for d in designs) + 1 for v in axis.values] for axis in TAXONOMY.axes}
    return {axis: np.array(count) / sum(count) for axis, count in counts.items()}


def implants(count, lines, seed):
    """Readings as of a weak detector: six axes of ten can be judged, six of ten of these are read and not guessed.

    Both depend on the implant, and so do the scores, whatever the design; every value has a rival.
    """
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        line, values = draw(rng, lines)
        clarity = rng.uniform(0.3, 0.9)
        readings = {}
        for axis in TAXONOMY.axes:
            if rng.random() < clarity:
                guess, rival = (str(rng.choice(axis.values, p=usual_values()[axis])) for _ in range(2))
                is_read = rng.random() < clarity
                score = clarity * (rng.uniform(0.6, 1.1) if is_read else rng.uniform(0.2, 0.9))
                weaker = rng.uniform(0, 0.6) * min(score, 1 - score)
                readings[axis.key] = {rival: weaker} | {values[axis.key] if is_read else guess: score}
        samples.append(Sample(readings, values, line.system, line.title, str(number // 3)))
    return samples


@cache
def calibrated():
    rng = np.random.default_rng(0)
    known = ((values, line.system, line.title) for line, values in (draw(rng, KNOWN) for _ in range(500)))
    table = build_table(KNOWN, TAXONOMY, count_examples(build_table(KNOWN, TAXONOMY, {}), known))
    return Ranker(table, calibrate(implants(400, KNOWN, seed=1), table, 0.9, table.values))


def test_unseen_makers_are_told_from_known_ones():
    groups = implants(600, KNOWN, seed=2), implants(300, UNSEEN, seed=3)
    fits, doubts, unknown = [], [], []
    for group in groups:
        told = [s for s in group if s.readings]
        rankings = calibrated().rank([sample.readings for sample in told])
        fits.append([-ranking.fit for ranking in rankings])
        doubts.append([-np.mean([max(votes.values()) for votes in s.readings.values()]) for s in told])
        unknown.append(np.mean([ranking.unknown for ranking in rankings]))
    is_unseen = np.repeat([0, 1], [len(group) for group in fits])
    auroc = roc_auc_score(is_unseen, np.concatenate(fits))
    assert auroc > 0.78
    assert auroc > roc_auc_score(is_unseen, np.concatenate(doubts)) + 0.15
    assert unknown[0] < 0.1
    assert unknown[1] > 3 * unknown[0]


@pytest.mark.parametrize("num_axes", [1, 3, 9])
def test_a_right_design_is_not_unknown_because_its_scores_are_low(num_axes):
    rng = np.random.default_rng(4)
    flagged = {}
    for score in (0.1, 0.3, 0.95):
        designs = []
        for line in KNOWN:
            for length in line.lengths:
                axes = rng.permutation(list(line.attributes(length, line.diameters[0])))[:num_axes].tolist()
                designs.append({axis: {line.attributes(length, line.diameters[0])[axis]: score} for axis in axes})
        flagged[score] = sum(ranking.unknown for ranking in calibrated().rank(designs))
    assert flagged[0.1] <= flagged[0.95]
    assert flagged[0.3] <= flagged[0.95]
