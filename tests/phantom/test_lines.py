"""Product lines: what comes with the package, and errors that name the place."""

import itertools
import re
from pathlib import Path

import pytest
import yaml

from implantdet.phantom import lines as lines_module
from implantdet.phantom.lines import default_lines, load_lines
from implantdet.taxonomy import default_taxonomy

SOURCE = Path(lines_module.__file__).with_name("lines.yaml")


@pytest.fixture
def write(tmp_path):
    def _write(change):
        content = yaml.safe_load(SOURCE.read_text(encoding="utf-8"))
        change(content["lines"][0])
        path = tmp_path / "lines.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    return _write


def test_the_named_lines_are_there():
    titles = {line.title for line in default_lines()}
    assert {
        "Bego S",
        "Bego RI",
        "Bego RSX",
        "Bicon",
        "ITI TL S",
        "ITI TL SP",
        "ITI TL TE",
        "ITI BL",
        "ITI BLT",
    } <= titles
    assert sum(line.system == "other" for line in default_lines()) >= 5


def test_attributes_are_values_of_the_taxonomy():
    taxonomy = default_taxonomy()
    values = {axis.key: axis.values for axis in taxonomy.axes}
    seen = {}
    for line in default_lines():
        for length, diameter in itertools.product(line.lengths, line.diameters):
            attributes = line.attributes(length, diameter)
            assert set(attributes) == set(values)
            for key, value in attributes.items():
                assert value in values[key], (line.title, key)
                seen.setdefault(key, set()).add(value)
    # both ways of every yes-or-no axis and every apex and body occur somewhere
    for key in ("coronal.level", "coronal.microthread", "middle.body", "middle.thread", "apical.groove", "apical.hole"):
        assert seen[key] == set(values[key]), key
    assert seen["apical.apex"] == set(values["apical.apex"])


def test_turns_of_the_thread_by_hand():
    """The thread of TL TE begins at 2.4 mm, and its pitch is 0.8 mm."""
    line = next(line for line in default_lines() if line.title == "ITI TL TE")
    found = {length: line.turns("coronal", length, 4.1) for length in (6, 8, 9, 12)}
    assert found == pytest.approx({6: 0, 8: (8 / 3 - 2.4) / 0.8, 9: 0.75, 12: 2})
    assert line.turns("middle", 6, 4.1) == pytest.approx(2)  # from 2.4 to 4 mm
    assert line.turns("middle", 12, 4.1) == pytest.approx(5)
    shapes = {length: line.attributes(length, 4.1)["coronal.thread"] for length in (8, 12)}
    assert shapes == {8: "none", 12: "v_shaped"}


def test_pitch_and_shoulder_may_go_with_the_diameter():
    tissue_level = next(line for line in default_lines() if line.title == "ITI TL S")
    assert [tissue_level.pitch(d) for d in (3.3, 4.0, 4.8)] == [1.0, 1.25, 1.25]  # the nearest diameter counts
    shoulders = [d * tissue_level.platform_ratio(d) for d in tissue_level.diameters]
    assert shoulders == pytest.approx([4.8, 4.8, 6.5], abs=0.03)
    bicon = next(line for line in default_lines() if line.title == "Bicon")
    assert bicon.pitch(3.5) == bicon.pitch(6.0) == 1.0


def test_sources_are_marked():
    bicon = next(line for line in default_lines() if line.title == "Bicon")
    assert bicon.sources["microthread"] == "s"
    assert bicon.sources["thread"] == "a"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("thread", [["screwy", 0.8, 0.3, 1], "m"], r"lines\[0\] \(S\): 'thread' must be .*one of.*found \['screwy'"),
        ("diameters", [[40], "s"], r"'diameters' must be a list of millimetres in \[2, 8\]; found \[40\]"),
        ("taper", [[0.2, 0.8, 0.4], "a"], r"'taper' must be .*start < end"),
        ("grooves", [2.5, "a"], r"'grooves' must be a whole number"),
        ("bore", [1.0, 0.5, 0.0], r"'bore' must be \[value, source\]"),
        ("hole", ["none", "x"], r"'hole' must be \[value, source\], source one of"),
        ("thread", [["v_shaped", [0.8, 1.0, 1.0, 9.0, 1.0], 0.3, 1], "m"], r"'thread' must be .*one for each diameter"),
        ("collar", [[1.0, [1.2, 1.3]], "m"], r"'collar' has 2 values for 5 diameters"),
        ("name", 5, r"'name' must be text; found 5"),
        ("system", "Acme", r"'system' must be one of .*found 'Acme'"),
    ],
)
def test_bad_fields_are_named(write, field, value, message):
    with pytest.raises(ValueError, match=message):
        load_lines(write(lambda line: line.update({field: value})))


def test_missing_and_unknown_fields_are_listed(write):
    def change(line):
        line["colour"] = line.pop("apex")

    with pytest.raises(ValueError, match=r"missing \['apex'\], unknown \['colour'\]"):
        load_lines(write(change))


def test_a_line_stands_once(write):
    with pytest.raises(ValueError, match=r"'Bego RI' stands twice"):
        load_lines(write(lambda line: line.update(name="RI")))


def test_no_lines(tmp_path):
    (tmp_path / "lines.yaml").write_text("lines: []\n", encoding="utf-8")
    with pytest.raises(ValueError, match="non-empty list"):
        load_lines(tmp_path / "lines.yaml")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"none\.yaml: no such file of product lines; start from a copy of .*lines\.yaml"
    ):
        load_lines(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("lines:\n  - name: A\n - name: B\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.yaml: expected YAML;"):
        load_lines(tmp_path / "bad.yaml")


def test_the_example_of_the_documentation_is_a_line(tmp_path):
    text = (Path(__file__).parents[2] / "datasets" / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "lines.yaml").write_text(SOURCE.read_text(encoding="utf-8") + example, encoding="utf-8")
    *packaged, new = load_lines(tmp_path / "lines.yaml")
    assert tuple(packaged) == default_lines()
    assert new.title == "ITI One"
