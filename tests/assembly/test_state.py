import json

import numpy as np
import pytest
from implant_scenes import CLASSES, detections, fitted, scenes

from implantdet.assembly.assembler import PartAssembler
from implantdet.data.problems import DataError


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


def test_before_calibration_nothing_is_unknown(tmp_path):
    fitted().save(tmp_path / "assembler.json")
    again = PartAssembler(CLASSES).load(tmp_path / "assembler.json")
    assert again.state_.calibration.min_fit == -np.inf
    assert again.state_.score_coefficients is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "version 1, expected 2"),
        ({"format": "pickle"}, "expected the state of a part assembler"),
        ({"thing_classes": ["Bego"]}, "other classes"),
        ({"pairs": [[1.0]]}, "damaged"),
        ({"aspects": None}, "damaged"),
    ],
)
def test_foreign_and_damaged_files_are_refused(tmp_path, change, message):
    path = tmp_path / "assembler.json"
    fitted().save(path)
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        PartAssembler(CLASSES).load(path)


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
