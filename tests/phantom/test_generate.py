"""The dataset folder: bytes, workers, interruption, format."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest

from implantdet.data.idd import load_folds, load_idd
from implantdet.data.problems import DataError
from implantdet.phantom import generate as generate_module
from implantdet.phantom.contact_sheet import contact_sheet, write_sheets
from implantdet.phantom.generate import GENERATOR, generate, radiographs
from implantdet.phantom.presets import PRESETS, Job

SMALL = {"images": 8, "patients": 6, "seed": 7, "preset": "mini"}


def snapshot(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("phantom") / "data", **SMALL)


def test_the_folder_is_a_dataset(dataset):
    content = load_idd(dataset)
    files = sorted(path.name for path in dataset.iterdir())
    assert files == ["annotations.json", "folds.json", "images", "phantom.json"]
    made = json.loads((dataset / "phantom.json").read_text(encoding="utf-8"))
    assert (SMALL | {"generator": GENERATOR}).items() <= made.items()
    assert len(content["images"]) == 8
    for image in content["images"]:
        pixels = cv2.imread(str(dataset / "images" / image["file_name"]), cv2.IMREAD_UNCHANGED)
        assert pixels.shape == (image["height"], image["width"]) == (320, 320)  # one channel
        assert pixels.std() > 20
    assert len({image["patient_id"] for image in content["images"]}) == 6
    assert {name["supercategory"] for name in content["categories"]} == {"coronal", "middle", "apical", "system"}


def test_implants_and_parts_belong_together(dataset):
    content = load_idd(dataset)
    names = {category["id"]: category for category in content["categories"]}
    by_implant = {}
    for annotation in content["annotations"]:
        by_implant.setdefault(annotation["implant_id"], []).append(annotation)
    for annotations in by_implant.values():
        wholes = [a for a in annotations if names[a["category_id"]]["supercategory"] == "system"]
        assert len(wholes) == 1
        assert len({a["image_id"] for a in annotations}) == 1
        keys = [names[a["category_id"]]["name"].rsplit(".", 1)[0] for a in annotations if a is not wholes[0]]
        assert len(set(keys)) == len(keys)
        x, y, w, h = wholes[0]["bbox"]
        for part in annotations:
            px, py, pw, ph = part["bbox"]
            assert x <= px
            assert y <= py
            assert px + pw <= x + w
            assert py + ph <= y + h


def test_millimetres_in_the_file(dataset):
    content = load_idd(dataset)
    matrices = {image["id"]: np.array(image["mm_per_pixel_matrix"]) for image in content["images"]}
    for record in (a for a in content["annotations"] if "axis" in a):
        coronal, apical = np.array(record["axis"])
        seen = record["length_mm"] * np.cos(np.radians(record["out_of_plane_deg"]))
        assert np.linalg.norm(matrices[record["image_id"]] @ (apical - coronal)) == pytest.approx(seen, rel=0.01)
        assert np.linalg.norm(apical - coronal) * record["mm_per_pixel"] == pytest.approx(seen, rel=0.01)


def test_folds_keep_patients_together(dataset):
    folds = load_folds(dataset)
    patient = {image["id"]: image["patient_id"] for image in load_idd(dataset)["images"]}
    parts = [folds["test"], *folds["folds"]]
    owners = [{patient[number] for number in part} for part in parts]
    assert sum(map(len, parts)) == 8
    assert sum(map(len, owners)) == len(set.union(*owners))


def test_same_bytes_whatever_the_number_of_workers(dataset, tmp_path):
    assert snapshot(generate(tmp_path / "data", **SMALL, workers=2)) == snapshot(dataset)


def test_other_seed_other_images(dataset, tmp_path):
    other = snapshot(generate(tmp_path / "data", **(SMALL | {"seed": 8, "images": 6})))
    assert not set(other.values()) & set(snapshot(dataset).values())


def test_unseen_makers_stand_in_the_jaws_of_other_patients():
    """Else a detector would know them from its training, which takes the same seed by default."""
    patients = {}
    for name in ("idd", "unseen"):
        job = Job(patient=3, system="ITI", panoramic=False, images=1)
        patients[name] = next(iter(radiographs(job, PRESETS[name], seed=0)))
    (known, view, _), (unseen, other, _) = patients.values()
    assert not np.array_equal(known.canvas.bone, unseen.canvas.bone)
    assert known.canvas.tissue.mean() != unseen.canvas.tissue.mean() and view.quality != other.quality


def test_killed_runs_go_on_where_they_stopped(dataset, tmp_path):
    out = tmp_path / "data"
    code = f"from implantdet.phantom.generate import generate; generate({str(out)!r}, **{SMALL!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    records = tmp_path / ".data.partial" / "records"
    deadline = time.monotonic() + 60
    while len(list(records.glob("0*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in records.glob("0*.json")}
    assert 2 <= len(done) < 6
    assert not out.exists()
    finished = []
    original = generate_module.write_patient
    try:
        generate_module.write_patient = lambda partial, job, *rest: (
            finished.append(job) or original(partial, job, *rest)
        )
        generate(out, **SMALL)
    finally:
        generate_module.write_patient = original
    assert len(finished) == 6 - len(done)  # what was whole is not made again
    assert snapshot(out) == snapshot(dataset)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(("key", "value"), [("seed", 99), ("images", 9), ("vocabulary", "of another taxonomy")])
def test_what_an_interrupted_run_of_other_arguments_has_made_stays(dataset, tmp_path, key, value):
    begun = json.loads((dataset / "phantom.json").read_text(encoding="utf-8"))
    partial = tmp_path / ".data.partial"
    (partial / "records").mkdir(parents=True)
    (partial / "phantom.json").write_text(json.dumps(begun | {key: value}), encoding="utf-8")
    with pytest.raises(FileExistsError, match=f"interrupted phantom that was begun with {key} {value!r}; expected"):
        generate(tmp_path / "data", **SMALL)
    assert partial.exists()
    (partial / "phantom.json").unlink()  # as of one that was stopped before it began
    assert snapshot(generate(tmp_path / "data", **SMALL)) == snapshot(dataset)


def test_nothing_is_overwritten(dataset):
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        generate(dataset, **SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "maxi"}, "preset 'maxi': expected one of idd, mini"),
        ({"workers": 0}, "workers 0"),
        ({"seed": -1}, "seed -1"),
        ({"patients": 3}, "expected at least 5 patients"),
    ],
)
def test_bad_arguments(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        generate(tmp_path / "data", **(SMALL | change))
    assert list(tmp_path.iterdir()) == []


def test_every_preset_draws_its_own_sizes(tmp_path, monkeypatch):
    small = replace(PRESETS["panoramic"], panoramic_size=(120, 240))
    monkeypatch.setitem(PRESETS, "panoramic", small)
    out = generate(tmp_path / "wide", images=5, patients=5, preset="panoramic")
    content = load_idd(out)
    assert {(image["height"], image["width"], image["modality"]) for image in content["images"]} == {
        (120, 240, "panoramic")
    }
    assert contact_sheet(out, grid=(1, 2), tile=(60, 120)).shape == (60, 244, 3)


def test_contact_sheets_show_boxes(dataset, tmp_path):
    plain, boxes = (contact_sheet(dataset, grid=(2, 4), tile=(100, 100), boxes=boxes) for boxes in (False, True))
    assert plain.shape == boxes.shape == (204, 412, 3)
    assert np.ptp(plain.astype(int), axis=2).max() == 0  # grey
    assert np.ptp(boxes.astype(int), axis=2).max() > 100  # coloured boxes
    paths = write_sheets(dataset, tmp_path)
    assert [path.name for path in paths] == ["data.jpg", "data_boxes.jpg"]
    assert all(path.stat().st_size > 1000 for path in paths)
