import itertools
import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from implantdet.assembly import ranking_calibration
from implantdet.assembly.line_table import build_table
from implantdet.assembly.ranking import UNREPORTED, Calibration, Quantiles, Ranker
from implantdet.assembly.ranking_calibration import (
    SURE_READINGS,
    Judged,
    Sample,
    calibrate,
    conformal_quantile,
    conformal_quantiles,
    groups_needed,
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


def judged(scores, patients=None):
    """Scores of one implant of each patient, or of these patients."""
    patients = range(len(scores)) if patients is None else patients
    return [Judged(score, f"{patient}") for score, patient in zip(scores, patients, strict=True)]


def test_the_quantile_of_split_conformal_prediction():
    scores = [k / 20 for k in range(1, 20)]  # 19 scores: ⌈20 · 0.9⌉ = 18
    assert conformal_quantile(judged(scores), 0.9) == 0.9
    assert conformal_quantile(judged(scores[::-1]), 0.9) == 0.9
    assert conformal_quantile(judged(scores[:8]), 0.9) is None  # nine would be the first to bound 90 %
    for count, coverage in itertools.product(range(1, 60), (0.8, 0.9, 0.95)):
        position = math.ceil(round((count + 1) * coverage, 6))
        expected = float(position) if position <= count else None
        assert conformal_quantile(judged([float(k) for k in range(1, count + 1)]), coverage) == expected


def test_patients_count_alike_however_many_implants_they_have():
    many = judged([0.1] * 90 + [0.2 + k / 100 for k in range(8)], ["one"] * 90 + list(range(8)))
    assert conformal_quantile(many, 0.9) == 0.27  # of nine patients, the largest
    assert conformal_quantile(judged([0.1] * 90, ["one"] * 90), 0.9) is None
    # Of each of nineteen patients one of two is strange: the 17th of these fills 18 of 20 shares.
    halves = judged([0.0] * 19 + [float(k) for k in range(1, 20)], [*range(19), *range(19)])
    assert conformal_quantile(halves, 0.9) == 17.0


@pytest.mark.parametrize(("patients", "each"), [(10, 5), (20, 3), (9, 1)])
def test_a_new_patient_is_covered_though_implants_of_one_look_alike(patients, each):
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(1500):
        of_patient = rng.normal(size=patients + 1)
        scores = np.repeat(of_patient[:-1], each)
        quantile = conformal_quantile(judged(scores, np.repeat(np.arange(patients), each)), 0.9)
        covered.append(of_patient[-1] <= quantile)
    assert np.mean(covered) > 0.88


def test_no_samples_change_nothing():
    assert calibrate([], TABLE, 0.9, TABLE.values) == Calibration()


def test_conformal_sets_cover_unseen_implants():
    calibration = calibrate(samples(800, 0.2, seed=1), TABLE, 0.9, TABLE.values)
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
    ranker = Ranker(TABLE, calibrate(like_iti(800, seed=1), TABLE, 0.9, TABLE.values))
    unseen = like_iti(800, seed=2)
    sets = [ranking.system_set for ranking in ranker.rank([sample.readings for sample in unseen])]
    for system in ("Bego", "ITI"):
        covered = [system in found for sample, found in zip(unseen, sets, strict=True) if sample.system == system]
        assert np.mean(covered) > 0.8, system
    assert all(sets)


def test_a_system_too_rare_to_judge_shares_the_quantile_of_all():
    of_iti, of_bego = judged([k / 20 for k in range(1, 20)]), judged([1.0] * 27)[19:]
    found = conformal_quantiles({"ITI": of_iti, "Bego": of_bego}, 0.9)
    assert found == Quantiles(1.0, {"ITI": 0.9})  # of all 27, the 26th; nine would be the first to bound 90 %
    assert found.of(["Bego", "ITI", "new"]).tolist() == [1.0, 0.9, 1.0]
    assert conformal_quantiles({"ITI": judged([0.5])}, 0.9) == Quantiles()
    assert Quantiles().of(["ITI"]) is None


def test_probabilities_of_systems_are_as_large_as_their_shares():
    unseen = like_iti(800, seed=2, every=3)
    means = []
    for calibration in (calibrate(like_iti(800, seed=1, every=3), TABLE, 0.9, TABLE.values), Calibration()):
        rankings = Ranker(TABLE, calibration).rank([sample.readings for sample in unseen])
        found = [next(c.probability for c in r.systems if c.name == "Bego") for r in rankings]
        means.append(np.mean(found))
    assert means[0] == pytest.approx(1 / 3, abs=0.02)
    assert means[1] < 0.2  # what the table alone says


def test_few_patients_do_not_promise_too_much():
    """What is learned from some patients fits them better than others; the sets know it."""
    covered = []
    for seed in range(40):
        ranker = Ranker(TABLE, calibrate(samples(40, 0.4, seed), TABLE, 0.9, TABLE.values))
        unseen = samples(100, 0.4, 1000 + seed)
        rankings = ranker.rank([sample.readings for sample in unseen])
        covered += [s.line in r.line_set for s, r in zip(unseen, rankings, strict=True)]
    assert 0.88 < np.mean(covered) < 0.95


def test_implants_of_which_no_design_was_read_do_not_raise_the_limit_of_the_unknown():
    read = samples(60, 0.2)
    empty = [sample._replace(readings={"system": {"ITI": 0.9}}) for sample in read]
    limits = [calibrate(found, TABLE, 0.9, TABLE.values).min_fit for found in ([*read, *empty], read, empty)]
    assert -np.inf < limits[0] == limits[1]
    assert limits[2] == -np.inf


def test_overconfidence_is_cooled():
    honest = calibrate(samples(400, 0.02), TABLE, 0.9, TABLE.values)
    # The same readings, read wrong far more often than the table thinks, and always the same way.
    blind = [s._replace(system=LINES[i % len(LINES)].system, line=None) for i, s in enumerate(samples(400, 0.02))]
    assert calibrate(blind, TABLE, 0.9, TABLE.values).temperature > 2 * honest.temperature


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
    ranker = Ranker(TABLE, calibrate(found, TABLE, 0.9, TABLE.values))
    bego, iti = ranker.rank([found[0].readings, found[1].readings])
    assert (bego.systems[0].name, iti.systems[0].name) == ("Bego", "ITI")


def test_what_the_detector_cannot_say_is_not_held_against_it():
    """No class, or no training image, is of system ``other``: that it was not read says nothing."""
    said = [Sample({SYSTEM: {"ITI": 0.9}}, {}, "ITI", None, str(k)) for k in range(40)]
    readable = TABLE.values | {SYSTEM: ("Bego", "Bicon", "ITI")}
    calibration = calibrate(said, TABLE, 0.9, readable)
    offsets = dict(zip(TABLE.values[SYSTEM], calibration.scalings[SYSTEM].offsets, strict=True))
    assert [system for system, offset in offsets.items() if np.isnan(offset)] == ["other"]
    (unread,) = Ranker(TABLE, calibration).likelihoods([{SYSTEM: {"Bego": 0.9}}])
    of_system = dict(zip(TABLE.systems, unread[list(TABLE.values).index(SYSTEM)], strict=True))
    assert of_system["ITI"] < of_system["other"] < of_system["Bego"]
    # A truth that it cannot say teaches nothing about what it says.
    others = [sample._replace(system="other", group=f"x{k}") for k, sample in enumerate(said)]
    taught = calibrate([*said, *others], TABLE, 0.9, readable).scalings[SYSTEM]
    assert taught.slope == pytest.approx(calibration.scalings[SYSTEM].slope)


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_so_many_patients_are_needed(coverage):
    number = groups_needed(coverage)
    assert conformal_quantile(judged([1.0] * number), coverage) == 1
    assert conformal_quantile(judged([1.0] * (number - 1)), coverage) is None


@pytest.mark.parametrize(("patients", "is_limited"), [(18, False), (19, True)])
def test_the_limit_of_the_unknown_takes_patients_enough(patients, is_limited, caplog):
    """One of twenty known implants may be called unknown: with nineteen patients, those that fit worse than all."""
    found = samples(patients, 0.2)
    calibration = calibrate(found, TABLE, 0.9, TABLE.values)
    fits = Ranker(TABLE, calibration).fit([sample.readings for sample in found])
    assert calibration.min_fit == pytest.approx(fits.min() if is_limited else -np.inf)
    told = "found for the calibration: conformal sets of 90 % need 9, and 'unknown' needs 19."
    assert (f"Implants of 18 patients (or sources) were {told}" in caplog.text) != is_limited
    alike = [sample._replace(group="one") for sample in samples(200, 0.2)]
    assert calibrate(alike, TABLE, 0.9, TABLE.values).min_fit == -np.inf


def test_axes_that_were_never_judged_keep_their_scores():
    found = [sample._replace(values={}) for sample in samples(50, 0.1)]
    assert set(calibrate(found, TABLE, 0.9, TABLE.values).scalings) == set()
    judged = [
        sample._replace(values={k: v for k, v in sample.values.items() if k == "apical.apex"})
        for sample in samples(50, 0.1)
    ]
    assert set(calibrate(judged, TABLE, 0.9, TABLE.values).scalings) == {"apical.apex"}


def test_lines_without_labels_get_no_set():
    unlabelled = [sample._replace(line=None) for sample in samples(100, 0.1)]
    calibration = calibrate(unlabelled, TABLE, 0.9, TABLE.values)
    assert calibration.line_quantile is None
    assert calibration.system_quantiles.of_all is not None


def test_unseen_systems_fit_worse():
    calibration = calibrate(samples(300, 0.02, seed=3), TABLE, 0.9, TABLE.values)
    ranker = Ranker(TABLE, calibration)
    others = tuple(line for line in default_lines() if line.system == "other")
    flagged = [
        np.mean([r.unknown for r in ranker.rank([s.readings for s in samples(300, 0.02, seed=4, lines=lines)])])
        for lines in (LINES, others)
    ]
    assert flagged[0] < 0.1
    assert flagged[1] > 2 * flagged[0]


def test_a_patient_is_judged_by_what_others_taught(monkeypatch):
    """First all ten teach, then five times those that are not judged."""
    found = [sample._replace(group=str(k // 4)) for k, sample in enumerate(samples(40, 0.2))]
    taught, teach = [], ranking_calibration._teach

    def spy(samples, *rest):
        taught.append({sample.group for sample in samples})
        return teach(samples, *rest)

    monkeypatch.setattr(ranking_calibration, "_teach", spy)
    calibrate(found, TABLE, 0.9, TABLE.values)
    assert [len(groups) for groups in taught] == [10, 8, 8, 8, 8, 8]
