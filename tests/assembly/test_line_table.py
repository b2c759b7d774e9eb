import dataclasses
import re

import numpy as np
import pytest
from implant_scenes import CLASSES, LINES

from implantdet.assembly.assembler import PartAssembler
from implantdet.assembly.line_table import MISTAKE, build_table, count_examples, warn_of_unlisted
from implantdet.phantom.lines import default_lines
from implantdet.taxonomy import SYSTEM, default_taxonomy

TAXONOMY = default_taxonomy()
BICON, BLT = (next(line for line in default_lines() if line.title == title) for title in ("Bicon", "ITI BLT"))


def table(lines=(BICON, BLT), examples=None):
    return build_table(lines, TAXONOMY, examples or {})


def row(built, title, axis):
    likelihood = built.likelihood[axis][built.titles.index(title)]
    return dict(zip(built.values[axis], likelihood.tolist(), strict=True))


def test_probabilities_add_up():
    built = table(default_lines())
    assert built.prior.sum() == pytest.approx(1)
    for likelihood in built.likelihood.values():
        assert likelihood.sum(axis=1) == pytest.approx(1)
        assert likelihood.min() > 0


def test_declared_attributes_are_probable():
    threads = row(table(), "Bicon", "middle.thread")
    assert threads["plateau"] == pytest.approx(1 - MISTAKE + MISTAKE / 5)
    assert threads["square"] == pytest.approx(MISTAKE / 5)
    assert row(table(), "ITI BLT", SYSTEM)["ITI"] > 0.97


def test_attributes_that_depend_on_the_length_are_shared():
    long_and_short = dataclasses.replace(BLT, lengths=(6.0, 14.0), thread_from=2.0)
    values = {long_and_short.attributes(length, 4.1)["coronal.thread"] for length in (6.0, 14.0)}
    assert values == {"none", "buttress"}
    threads = row(table([long_and_short]), "ITI BLT", "coronal.thread")
    assert threads["none"] == threads["buttress"] > 0.4


def test_systems_without_a_line_stand_for_themselves():
    built = table()
    assert built.titles == ("Bicon", "ITI BLT", "Bego", "other")
    assert set(row(built, "Bego", "apical.apex").values()) == {1 / 3}


def test_examples_correct_the_declaration():
    values = {"middle.thread": "square"}
    examples = count_examples(table(), [(values, "Bicon", "Bicon")] * 45)
    assert examples["Bicon"]["middle.thread"] == {"square": 45}
    learned = row(table(examples=examples), "Bicon", "middle.thread")
    assert learned["square"] == pytest.approx((45 + 5 * MISTAKE / 5) / 50)
    assert row(table(examples=examples), "ITI BLT", "middle.thread") == row(table(), "ITI BLT", "middle.thread")


def test_the_prior_counts_examples_and_leaves_room_for_new_lines():
    examples = count_examples(table(), [({}, "Bicon", "Bicon")] * 3 + [({}, "ITI", "ITI BLT")])
    assert table(examples=examples).prior == pytest.approx(0.9 * np.array([0.75, 0.25, 0, 0]) + 0.1 / 4)


def test_a_line_that_left_the_list_leaves_its_share_to_its_system():
    """As of a system that was known by its whole implants until its first line was declared, or of renamed lines."""
    bego, other = (next(line for line in default_lines() if line.system == name) for name in ("Bego", "other"))
    values = {"middle.thread": "square"}
    before = table((BICON, BLT, other))
    examples = count_examples(before, [(values, "Bego", None)] * 6 + [({}, "ITI", "ITI BLT")] * 2)
    assert set(examples) == {"Bego", "ITI BLT"}
    renamed = dataclasses.replace(BLT, name="new")
    built = table((BICON, renamed, bego, dataclasses.replace(bego, name="new"), other), examples)
    assert built.prior == pytest.approx(0.9 * np.array([0, 2, 3, 3, 0]) / 8 + 0.1 / 5)
    assert built.likelihood["middle.thread"] == pytest.approx(
        table((BICON, renamed, bego, dataclasses.replace(bego, name="new"), other)).likelihood["middle.thread"]
    )


def test_a_system_of_which_only_whole_implants_were_seen_is_not_described():
    examples = count_examples(table(), [({}, "other", None)] * 9 + [({"middle.thread": "square"}, "Bego", None)])
    assert table(examples=examples).is_described.tolist() == [True, True, True, False]  # Bicon, BLT, Bego, other


def test_an_unknown_line_counts_for_the_lines_of_its_system_as_far_as_they_fit():
    lines = [line for line in default_lines() if line.system == "ITI"]
    declared = table(lines)
    tissue = lines[0].attributes(10, 4.1)
    examples = count_examples(declared, [(tissue, "ITI", None)])
    shares = {title: axes[SYSTEM]["ITI"] for title, axes in examples.items()}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["ITI TL S"] > 0.3 > 0.01 > shares["ITI BLT"]
    assert set(shares) <= {line.title for line in lines}


def test_lines_that_the_list_lacks_are_named(caplog):
    warn_of_unlisted(["ITI BLT", None, "Bicon"], ("ITI BLT", "Bicon"))
    assert not caplog.records
    warn_of_unlisted(["BLT", "ITI BLT", "BLT", "BLX"], ("ITI BLT", "Bicon"))
    message = "The 'product_line' of 3 implants is none of the list ('BLT': 2, 'BLX': 1): .* such as 'ITI BLT'"
    assert re.search(message.replace("(", r"\(").replace(")", r"\)"), caplog.text)


def test_examples_of_unknown_systems_count_for_nothing():
    assert count_examples(table(), [({}, None, None), ({}, "Acme", "Acme One")]) == {}


def test_lines_of_a_system_that_the_taxonomy_lacks_are_refused():
    foreign = dataclasses.replace(LINES[0], system="Acme")
    with pytest.raises(ValueError, match="lines: found lines of Acme, expected systems of the taxonomy"):
        PartAssembler(CLASSES, lines=(*LINES, foreign))
