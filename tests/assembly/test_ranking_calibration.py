import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from implantdet.assembly.line_table import build_table
from implantdet.assembly.ranking import UNREPORTED, Calibration, Quantiles, Ranker
from implantdet.assembly.ranking_calibration import (
    SURE_READINGS,
    Sample,
    calibrate,
    conformal_quantile,
    conformal_quantiles,
    vector_scaling,
)
from implantdet.phantom.lines import default_lines
from implantdet.taxonomy import SYSTEM, default_taxonomy

TAXONOMY = default_taxonomy()
LINES = tuple(line for line in default_lines() if line.system != "other")
TABLE = build_table(LINES, TAXONOMY, {})


def samples(count, error, seed=0, lines=LINES):
    """Implants whose axes are read wrong with probability ``error`` and are missing with probability 0.4."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        line = lines[rng.integers(len(lines))]
        values = {a: v for a, v in line.attributes(line.lengths[-1], line.diameters[0]).items() if rng.random() > 0.4}
        readings = {}
        for axis in TAXONOMY.axes:
            if axis.key in values:
                wrong = rng.random() < error
                value = rng.choice(axis.values) if wrong else values[axis.key]
                readings[axis.key] = {str(value): float(rng.uniform(0.9, 1.0))}
        found.append(Sample(readings, values, line.system, line.title, str(len(found))))
    return found


def test_the_quantile_of_split_conformal_prediction():
    scores = [k / 20 for k in range(1, 20)]  # 19 scores: ⌈20 · 0.9⌉ = 18
    assert conformal_quantile(scores, 0.9) == 0.9
    assert conformal_quantile(scores[::-1], 0.9) == 0.9
    assert conformal_quantile(scores[:8], 0.9) is None  # nine would be the first to bound 90 %


def test_no_samples_change_nothing():
    assert calibrate([], TABLE, 0.9) == Calibration()


def test_conformal_sets_cover_unseen_implants():
    calibration = calibrate(samples(800, 0.2, seed=1), TABLE, 0.9)
    ranker = Ranker(TABLE, calibration)
    unseen = samples(800, 0.2, seed=2)
    rankings = ranker.rank([sample.readings for sample in unseen])
    lines = np.mean([s.line in r.line_set for s, r in zip(unseen, rankings, strict=True)])
    systems = np.mean([s.system in r.system_set for s, r in zip(unseen, rankings, strict=True)])
    assert systems > 0.85
    assert 0.85 < lines < 0.95
    assert np.mean([len(r.system_set) for r in rankings]) < len(TAXONOMY.systems) / 2


def like_iti(count, seed, every=10):
    """One implant in ``every`` is a Bego, and reads like an ITI."""
    of_iti = [line for line in LINES if line.system == "ITI"]
    found = samples(count, 0.2, seed, of_iti)
    return [s._replace(system="Bego", line=None) if k % every == 0 else s for k, s in enumerate(found)]


def test_sets_cover_a_rare_system_as_often_as_the_others():
    ranker = Ranker(TABLE, calibrate(like_iti(800, seed=1), TABLE, 0.9))
    unseen = like_iti(800, seed=2)
    sets = [ranking.system_set for ranking in ranker.rank([sample.readings for sample in unseen])]
    for system in ("Bego", "ITI"):
        covered = [system in found for sample, found in zip(unseen, sets, strict=True) if sample.system == system]
        assert np.mean(covered) > 0.8, system
    assert all(sets)


def test_a_system_too_rare_to_judge_shares_the_quantile_of_all():
    found = conformal_quantiles([("ITI", k / 20) for k in range(1, 20)] + [("Bego", 1.0)] * 8, 0.9)
    assert found == Quantiles(1.0, {"ITI": 0.9})  # of all 27, the 26th; nine would be the first to bound 90 %
    assert found.of(["Bego", "ITI", "new"]).tolist() == [1.0, 0.9, 1.0]
    assert conformal_quantiles([("ITI", 0.5)], 0.9) == Quantiles()
    assert Quantiles().of(["ITI"]) is None


def test_probabilities_of_systems_are_as_large_as_their_shares():
    unseen = like_iti(800, seed=2, every=3)
    means = []
    for calibration in (calibrate(like_iti(800, seed=1, every=3), TABLE, 0.9), Calibration()):
        rankings = Ranker(TABLE, calibration).rank([sample.readings for sample in unseen])
        found = [next(c.probability for c in r.systems if c.name == "Bego") for r in rankings]
        means.append(np.mean(found))
    assert means[0] == pytest.approx(1 / 3, abs=0.02)
    assert means[1] < 0.2  # what the table alone says


def test_few_patients_do_not_promise_too_much():
    """What is learned from some patients fits them better than others; the sets know it."""
    covered = []
    for seed in range(40):
        ranker = Ranker(TABLE, calibrate(samples(40, 0.4, seed), TABLE, 0.9))
        unseen = samples(100, 0.4, 1000 + seed)
        rankings = ranker.rank([sample.readings for sample in unseen])
        covered += [s.line in r.line_set for s, r in zip(unseen, rankings, strict=True)]
    assert 0.88 < np.mean(covered) < 0.95


def test_implants_of_which_no_design_was_read_do_not_raise_the_limit_of_the_unknown():
    read = samples(60, 0.2)
    empty = [sample._replace(readings={"system": {"ITI": 0.9}}) for sample in read]
    assert calibrate([*read, *empty], TABLE, 0.9).min_fit == calibrate(read, TABLE, 0.9).min_fit
    assert calibrate(empty, TABLE, 0.9).min_fit == -np.inf


def test_overconfidence_is_cooled():
    honest = calibrate(samples(400, 0.02), TABLE, 0.9)
    # The same readings, read wrong far more often than the table thinks, and always the same way.
    blind = [s._replace(system=LINES[i % len(LINES)].system, line=None) for i, s in enumerate(samples(400, 0.02))]
    assert calibrate(blind, TABLE, 0.9).temperature > 2 * honest.temperature


def scores_and_truth(slope, offsets, count=20000, seed=0):
    """Scores, and true values that are as probable as ``slope`` and ``offsets`` say (all alike beforehand)."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(UNREPORTED, 1, (count, len(offsets)))
    posterior = softmax(slope * np.log(scores) + offsets, axis=1)
    return scores, (posterior.cumsum(axis=1) < rng.random((count, 1))).sum(axis=1)


def test_vector_scaling_is_logistic_regression():
    """Of two values: on the difference of the logarithms of their scores, with what is put in for a prejudice."""
    scores, truth = scores_and_truth(1.7, [0.0, -1.2])
    scaling = vector_scaling(scores, truth)
    sure = np.array([[1.0, UNREPORTED], [UNREPORTED, 1.0]])
    logs = np.log(np.concatenate([scores, sure]))
    weights = np.concatenate([np.ones(len(scores)), [SURE_READINGS] * 2])
    labels = np.concatenate([truth, [0, 1]])
    regression = LogisticRegression(C=np.inf, tol=1e-8).fit(logs[:, 1:] - logs[:, :1], labels, weights)
    assert scaling.slope == pytest.approx(regression.coef_[0, 0], abs=2e-3)
    share = np.bincount(labels, weights) / weights.sum()
    expected = regression.intercept_[0] - np.log(share[1] / share[0])
    assert scaling.offsets[1] - scaling.offsets[0] == pytest.approx(expected, abs=5e-3)


def test_what_shaped_the_scores_is_found_again():
    offsets = np.array([0.4, -0.9, 0.5, 0.0])
    scores, truth = scores_and_truth(2.5, offsets)
    scaling = vector_scaling(scores, truth)
    assert scaling.slope == pytest.approx(2.5, abs=0.1)
    learned = scaling.offsets + np.log(np.bincount(truth) / len(truth))  # of posteriors
    assert learned - learned.mean() == pytest.approx(offsets - offsets.mean(), abs=0.06)


def test_guesses_say_nothing_and_no_samples_are_believed():
    rng = np.random.default_rng(0)
    guesses = rng.uniform(UNREPORTED, 1, (5000, 3))
    assert abs(vector_scaling(guesses, rng.integers(3, size=5000)).slope) < 0.1
    believed = vector_scaling(np.zeros((0, 3)), np.zeros(0, int))
    # With the slope a, a sure reading is right with a probability of 1 / (1 + 2 u^a); a itself is pulled to 1.
    u, weight = UNREPORTED, 3 * SURE_READINGS
    slope = brentq(lambda a: a - 1 + weight * 2 * u**a * np.log(u) / (1 + 2 * u**a), 0, 9)
    assert believed.slope == pytest.approx(slope, rel=1e-3)
    assert believed.offsets == pytest.approx(np.full(3, believed.offsets[0]))


def test_a_rare_system_that_never_scores_best_is_still_told():
    """A tenth are Bego; their score stays below that of ITI, but is there, while ITI's implants have none of it."""
    found = [
        Sample({SYSTEM: {"ITI": 0.7, "Bego": 0.3} if k % 10 == 0 else {"ITI": 0.8}}, {}, system, None, str(k))
        for k in range(400)
        for system in [("Bego" if k % 10 == 0 else "ITI")]
    ]
    ranker = Ranker(TABLE, calibrate(found, TABLE, 0.9))
    bego, iti = ranker.rank([found[0].readings, found[1].readings])
    assert (bego.systems[0].name, iti.systems[0].name) == ("Bego", "ITI")


def test_axes_that_were_never_judged_keep_their_scores():
    found = [sample._replace(values={}) for sample in samples(50, 0.1)]
    assert set(calibrate(found, TABLE, 0.9).scalings) == set()
    judged = [
        sample._replace(values={k: v for k, v in sample.values.items() if k == "apical.apex"})
        for sample in samples(50, 0.1)
    ]
    assert set(calibrate(judged, TABLE, 0.9).scalings) == {"apical.apex"}


def test_lines_without_labels_get_no_set():
    unlabelled = [sample._replace(line=None) for sample in samples(100, 0.1)]
    calibration = calibrate(unlabelled, TABLE, 0.9)
    assert calibration.line_quantile is None
    assert calibration.system_quantiles.of_all is not None


def test_unseen_systems_fit_worse():
    calibration = calibrate(samples(300, 0.02, seed=3), TABLE, 0.9)
    ranker = Ranker(TABLE, calibration)
    others = tuple(line for line in default_lines() if line.system == "other")
    flagged = [
        np.mean([r.unknown for r in ranker.rank([s.readings for s in samples(300, 0.02, seed=4, lines=lines)])])
        for lines in (LINES, others)
    ]
    assert flagged[0] < 0.1
    assert flagged[1] > 2 * flagged[0]
