from dataclasses import replace

import numpy as np
import pytest

from implantdet.assembly.design_fit import design_fit
from implantdet.assembly.line_table import LineTable, build_table
from implantdet.assembly.ranking import UNREPORTED, Calibration, Ranker, Scaling, conformal_sets, readings_of
from implantdet.phantom.lines import default_lines
from implantdet.structures import Part, Reading
from implantdet.taxonomy import SYSTEM, default_taxonomy

RANKER = Ranker(build_table(default_lines(), default_taxonomy(), {}))
# Two systems of one line each, one axis with two values.
TOY = LineTable(
    titles=("a1", "b1"),
    systems=("a", "b"),
    values={"middle.body": ("straight", "tapered"), "middle.thread": ("square", "v_shaped"), SYSTEM: ("a", "b")},
    likelihood={
        "middle.body": np.array([[0.9, 0.1], [0.3, 0.7]]),
        "middle.thread": np.array([[0.5, 0.5], [0.5, 0.5]]),
        SYSTEM: np.array([[0.98, 0.02], [0.02, 0.98]]),
    },
    prior=np.array([0.5, 0.5]),
    is_described=np.array([True, True]),
)


def rank(ranker, readings):
    (ranking,) = ranker.rank([readings])
    return ranking


def test_bayes_rule_by_hand():
    ranking = rank(Ranker(TOY), {"middle.body": {"straight": 1.0}})
    assert [c.name for c in ranking.systems] == ["a", "b"]
    assert ranking.systems[0].probability == pytest.approx(0.9 / 1.2)
    evidence = ranking.systems[1].evidence
    assert evidence == (("middle.body", "straight", 1.0, pytest.approx(np.log(0.3 / 0.6))),)


def test_an_unsure_reading_counts_less():
    # A score of 0.6 leaves 0.4 to either value: 0.8 straight, 0.2 tapered.
    ranking = rank(Ranker(TOY), {"middle.body": {"straight": 0.6}})
    a, b = 0.8 * 0.9 + 0.2 * 0.1, 0.8 * 0.3 + 0.2 * 0.7
    assert ranking.systems[0].probability == pytest.approx(a / (a + b))


def test_missing_axes_say_nothing():
    nothing = rank(Ranker(TOY), {})
    assert [c.probability for c in nothing.systems] == [0.5, 0.5]
    assert (nothing.fit, nothing.unknown) == (None, None)
    one = rank(Ranker(TOY), {"middle.body": {"straight": 1.0}})
    both = rank(Ranker(TOY), {"middle.body": {"straight": 1.0}, "middle.thread": {"square": 1.0}})
    assert both.systems[0].probability == pytest.approx(one.systems[0].probability)


def test_ties_are_kept():
    ranking = rank(Ranker(TOY), {"middle.thread": {"square": 1.0}})
    assert [c.rank for c in ranking.systems] == [1, 1]
    assert [c.rank for c in rank(Ranker(TOY), {"middle.body": {"tapered": 1.0}}).systems] == [1, 2]


def test_the_design_of_every_line_ranks_it_among_the_first():
    for line in default_lines():
        design = {axis: {value: 0.97} for axis, value in line.attributes(line.lengths[-1], line.diameters[0]).items()}
        ranking = rank(RANKER, design)
        probability = {candidate.name: candidate.probability for candidate in ranking.lines}
        assert probability[line.title] > max(probability.values()) / 3  # lines of one design differ by their lengths
        assert ranking.fit > 3  # it is no wonder, and no other design
        assert sum(c.probability for c in ranking.systems) == pytest.approx(1)


def test_a_whole_implant_detection_is_fused():
    tissue = {"coronal.level": {"tissue": 0.97}}
    alone, fused = rank(RANKER, tissue), rank(RANKER, tissue | {SYSTEM: {"Bego": 0.9}})
    assert alone.systems[0].name == "ITI"
    probability = {c.name: c.probability for c in fused.systems}
    assert probability["Bego"] > {c.name: c.probability for c in alone.systems}["Bego"]
    assert any(e.axis == SYSTEM and e.weight > 0 for c in fused.systems if c.name == "Bego" for e in c.evidence)


def test_the_temperature_takes_confidence_away():
    hot = rank(Ranker(TOY, Calibration(temperature=1e6)), {"middle.body": {"straight": 1.0}})
    assert hot.systems[0].probability == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_weights_of_evidence_are_those_of_the_probabilities(temperature):
    """Of two systems of one line each: the weights of the one less those of the other are the log-odds."""
    table = replace(TOY, likelihood=TOY.likelihood | {"middle.thread": np.array([[0.6, 0.4], [0.2, 0.8]])})
    ranker = Ranker(table, Calibration(temperature=temperature))
    ranking = rank(ranker, {"middle.body": {"straight": 1.0}, "middle.thread": {"v_shaped": 0.9}})
    for first, second in (ranking.systems, ranking.lines):
        told = sum(e.weight for e in first.evidence) - sum(e.weight for e in second.evidence)
        assert told == pytest.approx(np.log(first.probability / second.probability))


def test_every_system_has_evidence_and_every_line_that_may_be():
    readings = {a: {v: 1.0} for a, v in default_lines()[0].attributes(10, 4.1).items()}
    ranking = rank(RANKER, readings)
    assert min(system.probability for system in ranking.systems) < 0.001
    assert all(len(system.evidence) == len(readings) for system in ranking.systems)
    assert all(bool(line.evidence) == (line.probability >= 0.05) for line in ranking.lines)


def first_of_toy(scaling, readings):
    """Probability of the first system, where the scores of the first axis are scaled."""
    ranking = rank(Ranker(TOY, Calibration(scalings={"middle.body": scaling})), readings)
    return {candidate.name: candidate.probability for candidate in ranking.systems}["a"]


def test_scaled_scores_by_hand():
    scaling = Scaling(2.0, np.array([0.0, np.log(3)]))
    # 0.6² and 3 · 0.4², then 0.6² and 3 · UNREPORTED², are how probable these scores are of straight and tapered ones.
    for scores, tapered in (({"straight": 0.6, "tapered": 0.4}, 0.4), ({"straight": 0.6}, UNREPORTED)):
        straight, tapered = 0.6**2, 3 * tapered**2
        a, b = 0.9 * straight + 0.1 * tapered, 0.3 * straight + 0.7 * tapered
        assert first_of_toy(scaling, {"middle.body": scores}) == pytest.approx(a / (a + b))
    # What was not read stays so, and other axes are none of its business.
    assert first_of_toy(scaling, {}) == 0.5
    plain = {c.name: c.probability for c in rank(Ranker(TOY), {SYSTEM: {"a": 0.8}}).systems}["a"]
    assert first_of_toy(scaling, {SYSTEM: {"a": 0.8}}) == pytest.approx(plain)


def test_scores_that_say_nothing_and_values_without_a_class():
    assert first_of_toy(Scaling(0.0, np.zeros(2)), {"middle.body": {"straight": 1.0}}) == pytest.approx(0.5)
    # The only value with a class is read, whatever is true.
    assert first_of_toy(Scaling(1.0, np.array([0.0, np.nan])), {"middle.body": {"straight": 1.0}}) == pytest.approx(0.5)


def test_a_value_without_a_class_is_as_probable_as_the_others_on_average():
    three = {"middle.body": ("straight", "tapered", "curved")}
    of_lines = {"middle.body": np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])}
    toy = replace(TOY, values=TOY.values | three, likelihood=TOY.likelihood | of_lines)
    scaling = Scaling(1.0, np.array([0.0, 0.0, np.nan]))
    ranking = rank(Ranker(toy, Calibration(scalings={"middle.body": scaling})), {"middle.body": {"straight": 0.9}})
    likely = np.array([0.9, UNREPORTED, (0.9 + UNREPORTED) / 2])
    a, b = of_lines["middle.body"] @ likely
    assert ranking.systems[0].probability == pytest.approx(a / (a + b))


def test_designs_that_fit_no_line_are_unknown():
    ranker = Ranker(RANKER.table, Calibration(min_fit=-3.0))
    odd = {"coronal.level": {"tissue": 1.0}, "middle.thread": {"plateau": 1.0}, "apical.hole": {"oblong": 1.0}}
    assert rank(ranker, odd).unknown
    assert not rank(ranker, {"coronal.level": {"tissue": 1.0}}).unknown
    # A whole-implant detection is not part of the design, and a design that was not read is not unknown.
    wary = Ranker(RANKER.table, Calibration(min_fit=np.inf))
    whole = rank(wary, {SYSTEM: {"Bego": 1.0}})
    assert (whole.fit, whole.unknown) == (None, None)
    assert rank(wary, odd | {SYSTEM: {"Bego": 1.0}}).fit == rank(wary, odd).fit


def test_a_new_line_takes_part_at_once():
    design = {"coronal.level": "tissue", "middle.thread": "square", "apical.apex": "cone", "apical.hole": "round"}
    new = replace(
        default_lines()[0],
        name="New",
        level="tissue",
        thread=("square", 1.0, 0.4, 1),
        apex=("cone", 0.5),
        hole="round",
    )
    readings = {axis: {value: 0.95} for axis, value in design.items()}
    assert rank(RANKER, readings).lines[0].name != "Bego New"
    with_new = Ranker(build_table([*default_lines(), new], default_taxonomy(), {}))
    assert rank(with_new, readings).lines[0].name == "Bego New"


def test_a_system_of_which_nothing_is_known_does_not_hide_that_no_line_fits():
    known = [line for line in default_lines() if line.system != "other"]  # "other" stays a system of the taxonomy
    table = build_table(known, default_taxonomy(), {})
    assert "other" in table.titles
    everything_odd = {
        "coronal.level": {"tissue": 1.0},
        "middle.thread": {"plateau": 1.0},
        "apical.hole": {"oblong": 1.0},
    }
    usual = {"coronal.level": {"tissue": 1.0}}
    assert rank(Ranker(table), everything_odd).fit < -3 < rank(Ranker(table), usual).fit
    nothing = Ranker(build_table([], default_taxonomy(), {}), Calibration(min_fit=np.inf))
    assert (rank(nothing, everything_odd).fit, rank(nothing, everything_odd).unknown) == (None, None)


def test_the_fit_is_that_of_scores_and_of_described_lines():
    ranker = Ranker(TOY, Calibration(scalings={"middle.body": Scaling(3.0, np.array([1.0, -1.0]))}))
    (expected,) = design_fit(np.array([[0.8, 0.0]]), TOY.likelihood["middle.body"].T, TOY.prior, [2])
    assert rank(ranker, {"middle.body": {"straight": 0.8}}).fit == pytest.approx(expected)

    likelihood = {axis: np.vstack([rows, rows.mean(axis=0)]) for axis, rows in TOY.likelihood.items()}
    titles, systems = ("a1", "b1", "c"), ("a", "b", "b")
    prior, described = np.array([0.25, 0.25, 0.5]), np.array([True, True, False])
    blank = replace(TOY, titles=titles, systems=systems, likelihood=likelihood, prior=prior, is_described=described)
    reading = {"middle.body": {"tapered": 0.7}}
    assert rank(Ranker(blank), reading).fit == pytest.approx(rank(Ranker(TOY), reading).fit)


def test_conformal_sets():
    names, rows = ("a", "b", "c"), np.array([[0.7, 0.25, 0.05], [0.45, 0.45, 0.1]])
    assert conformal_sets(names, rows, None) == [None, None]
    assert conformal_sets(names, rows, 0.8) == [("a", "b"), ("a", "b")]
    assert conformal_sets(names, rows, 0.0) == [("a",), ("a", "b")]  # the most probable ones stay
    assert conformal_sets(names, rows, np.array([0.0, 0.0, 0.96])) == [("a", "c"), ("a", "b", "c")]
    assert conformal_sets(names, rows[:0], 0.8) == []


def test_rivals_share_their_axis():
    torn = rank(Ranker(TOY), {"middle.body": {"straight": 0.9, "tapered": 0.6}})
    shared = rank(Ranker(TOY), {"middle.body": {"straight": 0.6, "tapered": 0.4}})
    assert [c.probability for c in torn.systems] == pytest.approx([c.probability for c in shared.systems])
    assert torn.fit == pytest.approx(shared.fit)
    assert torn.systems[0].evidence[0].weight == pytest.approx(shared.systems[0].evidence[0].weight)
    alone = rank(Ranker(TOY), {"middle.body": {"straight": 0.9}})
    assert alone.systems[0].probability > torn.systems[0].probability
    assert torn.systems[0].evidence[0].score == 0.9  # as the detector said


def test_a_system_is_judged_by_the_line_that_it_is_likely_to_be():
    # Line a2 has what no other line has, and is rare; what is read is all of it.
    body, thread = np.array([[0.9, 0.1], [0.1, 0.9], [0.7, 0.3]]), np.array([[0.8, 0.2], [0.2, 0.8], [0.9, 0.1]])
    table = replace(
        TOY,
        titles=("a1", "a2", "b1"),
        systems=("a", "a", "b"),
        likelihood={"middle.body": body, "middle.thread": thread, SYSTEM: np.array([[0.5, 0.5]] * 3)},
        prior=np.array([0.45, 0.05, 0.5]),
        is_described=np.array([True, True, True]),
    )
    ranking = rank(Ranker(table), {"middle.body": {"tapered": 1.0}, "middle.thread": {"v_shaped": 1.0}})
    weight = {evidence.axis: evidence.weight for evidence in ranking.systems[0].evidence}
    assert ranking.systems[0].name == "a"
    # Of the lines of "a", what the thread alone says is 0.45 · 0.2 of a1 and 0.05 · 0.8 of a2.
    a1, a2 = 0.09 / 0.13, 0.04 / 0.13
    of_all = 0.45 * 0.1 + 0.05 * 0.9 + 0.5 * 0.3
    assert weight["middle.body"] == pytest.approx(np.log((a1 * 0.1 + a2 * 0.9) / of_all))


def test_the_evidence_for_a_system_speaks_for_it():
    """What makes a line of its own out of an unusual design is no reason against the system that it belongs to."""
    for line in default_lines():
        ranking = rank(RANKER, {a: {v: 0.97} for a, v in line.attributes(line.lengths[-1], line.diameters[0]).items()})
        assert sum(evidence.weight for evidence in ranking.systems[0].evidence) > 0


def test_evidence_tells_the_reading_that_decides():
    """Where a low score for tapered is worth more than a high one for straight, tapered is what speaks for b."""
    calibration = Calibration(scalings={"middle.body": Scaling(1.0, np.array([-3.0, 3.0]))})
    ranking = rank(Ranker(TOY, calibration), {"middle.body": {"straight": 0.7, "tapered": 0.3}})
    (evidence,) = ranking.systems[0].evidence
    assert ranking.systems[0].name == "b"
    assert evidence[:3] == ("middle.body", "tapered", 0.3) and evidence.weight > 0


def test_readings_of_parts_have_rivals():
    def reading(value, score):
        return Reading("middle.body", value, score, 0)

    box = (0.0, 0.0, 1.0, 1.0)
    sure = Part("middle", box, 0.6, (reading("straight", 0.6),), (reading("tapered", 0.1),))
    assert readings_of([sure], None) == {"middle.body": {"straight": 0.6, "tapered": 0.1}}
    torn = Part("middle", box, 0.9, (reading("straight", 0.9),), (reading("tapered", 0.6), reading("straight", 0.2)))
    assert readings_of([torn], None) == {"middle.body": {"straight": 0.9, "tapered": 0.6}}
    whole = Part("system", box, 0.8, (Reading("system", "ITI", 0.8, 1),))
    assert readings_of([], whole) == {"system": {"ITI": 0.8}}


def test_evidence_comes_heaviest_first():
    table = replace(TOY, likelihood=TOY.likelihood | {"middle.thread": np.array([[0.6, 0.4], [0.4, 0.6]])})
    ranking = rank(Ranker(table), {"middle.thread": {"square": 1.0}, "middle.body": {"tapered": 1.0}})
    for candidate in ranking.systems:  # also where the heaviest speaks against it
        assert [evidence.axis for evidence in candidate.evidence] == ["middle.body", "middle.thread"]
