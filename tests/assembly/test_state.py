import json
from dataclasses import replace

import numpy as np
import pytest
from implant_scenes import CLASSES, LINES, detections, fitted, scenes

from implantdet.assembly.assembler import PartAssembler
from implantdet.assembly.ranking import Calibration, Scaling
from implantdet.assembly.state import load_state, read_classes, save_state
from implantdet.data.problems import DataError
from implantdet.taxonomy import Taxonomy, default_taxonomy


@pytest.fixture(scope="module")
def calibrated():
    records = scenes(30, seed=4)
    assembler = PartAssembler(CLASSES).fit(scenes(30, seed=5))
    return assembler.calibrate(records, [detections(record, lambda _: True) for record in records])


def test_what_is_read_does_what_was_written(calibrated, tmp_path):
    calibrated.save(tmp_path / "assembler.json")
    again = PartAssembler(CLASSES).load(tmp_path / "assembler.json")
    for record in scenes(5, seed=6):
        assert again.assemble(detections(record)) == calibrated.assemble(detections(record))
    again.save(tmp_path / "copy.json")
    assert (tmp_path / "copy.json").read_bytes() == (tmp_path / "assembler.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["assembler.json", "copy.json"]


def with_values(before):
    """The taxonomy with new values before those of some axes (``system`` is one), so that all columns move."""
    taxonomy = default_taxonomy()
    axes = tuple(replace(axis, values=(*before.get(axis.key, ()), *axis.values)) for axis in taxonomy.axes)
    return Taxonomy(axes, (*before.get("system", ()), *taxonomy.systems))


def test_a_new_system_and_new_values_take_part_after_calibration(calibrated, tmp_path):
    calibrated.save(tmp_path / "assembler.json")
    taxonomy = with_values({"system": ("Acme",), "middle.thread": ("wavy",), "apical.apex": ("bulb",)})
    shape = {"level": "tissue", "thread": ("wavy", 1.0, 0.4, 1), "apex": ("bulb", 0.5), "hole": "round"}
    new = replace(LINES[0], name="One", system="Acme", microthread=(1.5, 0.3), grooves=3, **shape)
    today = PartAssembler(CLASSES, lines=(*LINES, new), taxonomy=taxonomy).load(tmp_path / "assembler.json")

    # The detector has no word for what is new, and calls it something else; the rest of the design tells.
    read = new.attributes(13, 4.1) | {"middle.thread": "v_shaped", "apical.apex": "dome", "system": "ITI"}
    del read["coronal.thread"]
    (ranking,) = today.ranker_.rank([{axis: {value: 0.95} for axis, value in read.items()}])
    assert (ranking.systems[0].name, ranking.lines[0].name) == ("Acme", "Acme One")
    for record in scenes(3, seed=6):  # what was known is still found
        names = [found.ranking.systems[0].name for found in today.assemble(detections(record))]
        assert names == [found.ranking.systems[0].name for found in calibrated.assemble(detections(record))]

    today.save(tmp_path / "grown.json")
    with pytest.raises(ValueError, match=r"with middle\.thread\.wavy, apical\.apex\.bulb, system\.Acme, which the"):
        PartAssembler(CLASSES).load(tmp_path / "grown.json")


@pytest.mark.parametrize("can_be_read", [False, True])
def test_scalings_of_new_values(can_be_read, tmp_path):
    classes = (*CLASSES, "middle.body.curved") if can_be_read else CLASSES
    calibration = Calibration(scalings={"middle.body": Scaling(1.5, np.array([0.8, -0.2]))})
    state = replace(fitted().state_, calibration=calibration, min_scores=np.full(len(classes), 0.05))
    save_state(tmp_path / "a.json", state, classes, {"middle.body": ("straight", "tapered")})
    today = {"middle.body": ("tapered", "curved", "straight")}
    loaded = load_state(tmp_path / "a.json", classes, today)
    expected = np.array([-0.2, 0.3 if can_be_read else np.nan, 0.8])
    save_state(tmp_path / "b.json", loaded, classes, today)
    for state in (loaded, load_state(tmp_path / "b.json", classes, today)):
        scaling = state.calibration.scalings["middle.body"]
        assert scaling.slope == 1.5
        assert scaling.offsets == pytest.approx(expected, nan_ok=True)


def test_another_taxonomy_takes_over_what_was_calibrated(calibrated, tmp_path):
    """As a file does that is read with it; one that lacks what was calibrated changes nothing."""
    calibrated.save(tmp_path / "assembler.json")
    taxonomy = with_values({"system": ("Acme",), "middle.thread": ("wavy",)})
    read = PartAssembler(CLASSES, taxonomy=taxonomy).load(tmp_path / "assembler.json")
    mine = PartAssembler(CLASSES).load(tmp_path / "assembler.json").set_params(taxonomy=taxonomy)
    for record in scenes(3, seed=6):
        assert mine.assemble(detections(record)) == read.assemble(detections(record))
    mine.save(tmp_path / "mine.json")
    read.save(tmp_path / "read.json")
    assert (tmp_path / "mine.json").read_bytes() == (tmp_path / "read.json").read_bytes()
    with pytest.raises(ValueError, match=r"came with middle\.thread\.wavy, system\.Acme, which the taxonomy"):
        mine.set_params(taxonomy=None)
    mine.save(tmp_path / "mine.json")
    assert (tmp_path / "mine.json").read_bytes() == (tmp_path / "read.json").read_bytes()
    assert mine.get_params()["taxonomy"] == taxonomy


def test_before_calibration_nothing_is_unknown(tmp_path):
    fitted().save(tmp_path / "assembler.json")
    again = PartAssembler(CLASSES).load(tmp_path / "assembler.json")
    assert again.state_.calibration.min_fit == -np.inf
    assert again.state_.score_coefficients is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "version 1, expected 5; fit the assembler again"),
        ({"format": "pickle"}, "expected the state of a part assembler"),
        ({"thing_classes": ["Bego"]}, "other classes"),
        ({"pairs": [[1.0]]}, "damaged"),
        ({"aspects": None}, "damaged"),
        ({"examples": None}, "damaged"),
        ({"min_scores": [0.5]}, r"damaged: .*of shape \(31,\); found \[0\.5\]"),
        ({"aspects": [1.0]}, r"damaged: .*of shape \(3,\); found \[1\.0\]"),
        ({"aspects": [-1.0, 0.0, 1.0]}, "damaged: .*aspects: expected numbers above 0"),
        ({"pairs": [[1], [1]]}, r"damaged: .*of shape \(3, 4\)"),
        ({"part_coefficients": [[1, 2, 3]]}, r"damaged: .*of shape \(4, 3\)"),
        ({"score_coefficients": [1.0]}, r"damaged: .*of shape \(13,\)"),
        ({"whole_weights": [1.0]}, r"damaged: .*of shape \(2,\)"),
        ({"miss_rates": [0.0, 0.0, 0.0, 0.0]}, "damaged: .*miss_rates: expected numbers above 0"),
        ({"line_quantile": "x"}, "damaged: "),
        ({"system_quantiles": ["x", {}]}, "damaged: "),
        ({"min_fit": [0.3]}, "damaged: "),
        ({"typical_best": 10**400}, "damaged: OverflowError"),
        ({"temperature": 0.0}, "damaged: .*temperature: expected numbers above 0; found 0"),
        ({"typical_best": 0.0}, "damaged: .*typical_best"),
        ({"regressions": []}, r"damaged: .*no regressions of \[\(\(0,\), 1\)"),
        ({"examples": {"a": 5}}, "damaged: "),
        ({"scalings": {"middle.body": [1.0, {"straight": "much"}]}}, "damaged: ValueError"),
        ({"scalings": {"middle.body": [1.0, ["straight"]]}}, "damaged: AttributeError"),
        ({"scalings": {"middle.body": [None, {"straight": 0.0}]}}, "damaged: ValueError"),
    ],
)
def test_foreign_and_damaged_files_are_refused(tmp_path, change, message):
    path = tmp_path / "assembler.json"
    fitted().save(path)
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        PartAssembler(CLASSES).load(path)


def test_the_classes_can_be_read_alone(tmp_path):
    path = tmp_path / "assembler.json"
    fitted().save(path)
    assert read_classes(path) == CLASSES
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"thing_classes": 3}), encoding="utf-8")
    with pytest.raises(ValueError, match="damaged: no list 'thing_classes'"):
        read_classes(path)


def test_files_that_are_no_json_are_refused(tmp_path):
    (tmp_path / "assembler.json").write_bytes(b"\x80\x04K\x01.")  # a pickle
    with pytest.raises(DataError, match="not a JSON file"):
        PartAssembler(CLASSES).load(tmp_path / "assembler.json")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "assembler.json"
    fitted().save(path)
    before = path.read_bytes()
    monkeypatch.setattr("implantdet.data.idd.json.dumps", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fitted().save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["assembler.json"]


@pytest.mark.parametrize("count", [2, 30])
def test_calibration_keeps_the_geometry_that_was_loaded(tmp_path, count):
    fitted().save(tmp_path / "assembler.json")
    records = scenes(count, seed=5)
    loaded = PartAssembler(CLASSES).load(tmp_path / "assembler.json")
    before = loaded.state_.model.triple.precision.copy()
    loaded.calibrate(records, [detections(r) for r in records])
    assert (loaded.state_.model.triple.precision == before).all()
