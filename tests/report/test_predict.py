import json
import os
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from implantdet.cli import main
from implantdet.data.problems import DataError
from implantdet.report import predict
from implantdet.report.overlay import COLUMN, HEIGHT, LINE
from implantdet.report.predict import predict_radiographs
from implantdet.structures import Assembly, Implant, Part
from implantdet.taxonomy import COLOURS

SURE, FAINT = (
    Implant((part,), None, part.box, part.score)
    for part in (Part("apical", (4, 4, 20, 30), 0.9), Part("apical", (40, 4, 50, 30), 0.2))
)


@pytest.fixture
def radiographs(tmp_path, monkeypatch):
    """Two folders with an image of one name, and a model that finds an implant in bright images."""
    for folder, brightness in (("a", 200), ("b", 10)):
        (tmp_path / folder / "deep").mkdir(parents=True)
        Image.fromarray(np.full((40, 60), brightness, np.uint8)).save(tmp_path / folder / "deep/one.png")

    class Predictor:
        told: ClassVar[list] = []

        def __init__(self, run_dir, lines):
            assert str(lines) == "lines.yaml"
            if run_dir == "broken":
                raise ValueError("assembler.json: damaged")

        def __call__(self, levels, mm_per_pixel, modality):
            self.told.append((mm_per_pixel, modality))
            if levels.mean() == 33:
                raise KeyboardInterrupt
            return Assembly((SURE, FAINT) if levels.mean() > 100 else (), ())

    monkeypatch.setattr(predict, "ImplantPredictor", Predictor)
    return tmp_path


def run(root, *images, run_dir="run", out="out", **options):
    known = {"mm_per_pixel": 0.1, "modality": "panoramic", "lines": "lines.yaml"}
    return predict_radiographs(run_dir, images, root / out, **known, **options)


def written(root):
    return json.loads((root / "out/implants.json").read_text(encoding="utf-8"))


def test_every_radiograph_of_files_and_folders_has_a_picture_and_its_implants(radiographs):
    bright, dark = radiographs / "a/deep/one.png", radiographs / "b/deep/one.png"
    assert run(radiographs, radiographs / "a", bright, dark) == 2  # the file is in the folder, too
    content = written(radiographs)
    assert [(image["file_name"], image["picture"]) for image in content["images"]] == [
        (str(bright), "a_deep_one.png"),  # whose is whose shows on the picture
        (str(dark), "b_deep_one.png"),
    ]
    assert [(image["modality"], image["mm_per_pixel"]) for image in content["images"]] == [("panoramic", 0.1)] * 2
    assert (content["model"], content["lines"]) == ("run", "lines.yaml")
    assert [[implant["score"] for implant in image["implants"]] for image in content["images"]] == [[0.9, 0.2], []]
    assert sorted(path.name for path in (radiographs / "out").iterdir()) == [
        "a_deep_one.png",
        "b_deep_one.png",
        "implants.json",
        "index.html",
    ]


def test_the_command_line_says_what_is_known(radiographs):
    options = ["--mm-per-pixel", "0.1", "--modality", "panoramic", "--lines", "lines.yaml"]
    assert main(["predict", "run", str(radiographs / "a"), "--out", str(radiographs / "out"), *options]) == 0
    assert len(written(radiographs)["images"]) == 1
    assert predict.ImplantPredictor.told == [(0.1, "panoramic")]


def test_what_the_command_line_does_not_say_comes_from_each_files_header(radiographs):
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID, file.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.3", "1.2.3"
    file.Rows, file.Columns, file.SamplesPerPixel, file.PixelRepresentation = 40, 60, 1, 0
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PhotometricInterpretation = 8, 8, 7, "MONOCHROME2"
    file.PixelSpacing, file.Modality, file.PixelData = [0.05, 0.05], "IO", bytes(40 * 60)
    for name in ("1.2.840.11", "1.2.840.12"):
        file.save_as(radiographs / "a/deep" / name, enforce_file_format=True)
    predict_radiographs("run", [radiographs / "a"], radiographs / "out", lines="lines.yaml")
    assert predict.ImplantPredictor.told == [*[(0.05, "periapical")] * 2, (None, None)]
    pictures = [image["picture"] for image in written(radiographs)["images"]]
    assert pictures == ["1.2.840.11.png", "1.2.840.12.png", "one.png"]


def test_what_no_header_says_the_shape_of_a_panoramic_does(radiographs):
    Image.fromarray(np.full((40, 80), 200, np.uint8)).save(radiographs / "a/deep/wide.png")
    predict_radiographs("run", [radiographs / "a"], radiographs / "out", lines="lines.yaml")
    assert predict.ImplantPredictor.told == [(None, None), (None, "panoramic")]
    assert [image["modality"] for image in written(radiographs)["images"]] == [None, "panoramic"]


def test_implants_that_are_small_in_the_picture_are_enlarged_under_it(radiographs):
    """Of the 400 pixels of a higher image, SURE has a tenth of those that it has of 40: fewer than 120 of 720."""
    Image.fromarray(np.full((400, 600), 200, np.uint8)).save(radiographs / "a/deep/two.png")
    run(radiographs, radiographs / "a")
    heights = []
    for name in ("one", "two"):
        with Image.open(radiographs / f"out/{name}.png") as picture:
            heights.append(picture.height)
    assert heights[0] == HEIGHT + 2 * LINE < heights[1]


def test_the_picture_has_the_radiograph_as_it_is_and_its_sure_implants(radiographs):
    run(radiographs, radiographs / "a", min_score=0.5)
    with Image.open(radiographs / "out/one.png") as picture:
        pixels = np.asarray(picture)[2 * LINE :]
    width = HEIGHT * 60 // 40
    assert pixels.shape[1] == 2 * width + COLUMN
    assert (pixels[:, :width] == 200).all()
    for share, is_drawn in (((4, 20), True), ((40, 50), False)):
        x = slice(*(width + round(value * HEIGHT / 40) for value in (share[0] - 1, share[1] + 1)))
        assert (pixels[:, x] == COLOURS["apical"]).all(-1).any() == is_drawn


def test_what_cannot_be_read_is_told_after_the_others_are_done(radiographs):
    (radiographs / "a/deep/broken.png").write_bytes(b"no image")
    Image.fromarray(np.full((3000, 1), 200, np.uint8)).save(radiographs / "a/deep/line.PNG")
    with pytest.raises(DataError, match=r"2 of 3 images cannot be used; .*out has the other 1") as error:
        run(radiographs, radiographs / "a")
    assert [Path(problem.file).name for problem in error.value.problems] == ["broken.png", "line.PNG"]
    left_out = written(radiographs)["left_out"]
    assert [Path(each["file_name"]).name for each in left_out] == ["broken.png", "line.PNG"]
    assert left_out[0]["reason"].startswith("unreadable image")
    assert "broken.png" in (radiographs / "out/index.html").read_text(encoding="utf-8")
    assert error.value.problems[0].reason.startswith("unreadable image")
    assert len(written(radiographs)["images"]) == 1


def test_an_image_too_long_for_a_picture_is_told_and_costs_no_other(radiographs, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3 * HEIGHT * (2 * HEIGHT + COLUMN))
    Image.fromarray(np.full((20, 2000), 200, np.uint8)).save(radiographs / "a/deep/long.png")
    with pytest.raises(DataError, match=r"1 of 2 images cannot be used; .*has the other 1") as error:
        run(radiographs, radiographs / "a")
    assert "exceeds limit" in error.value.problems[0].reason


def test_what_is_finished_stays_after_an_interruption(radiographs):
    Image.fromarray(np.full((40, 60), 33, np.uint8)).save(radiographs / "a/deep/two.png")
    with pytest.raises(KeyboardInterrupt):
        run(radiographs, radiographs / "a")
    assert [image["picture"] for image in written(radiographs)["images"]] == ["one.png"]


def test_an_interrupted_run_goes_on_with_the_radiographs_that_are_left(radiographs):
    first, second = radiographs / "a/deep/a.png", radiographs / "a/deep/two.png"
    first.write_bytes(b"damaged")
    Image.fromarray(np.full((40, 60), 33, np.uint8)).save(second)
    with pytest.raises(KeyboardInterrupt):
        run(radiographs, radiographs / "a", resume=True)  # which starts where there is nothing to resume
    for path in (first, second):
        Image.fromarray(np.full((40, 60), 200, np.uint8)).save(path)
    looked_at = len(predict.ImplantPredictor.told)
    assert run(radiographs, radiographs / "a", resume=True) == 3
    assert len(predict.ImplantPredictor.told) == looked_at + 2
    resumed = written(radiographs)
    (radiographs / "out").rename(radiographs / "resumed")
    run(radiographs, radiographs / "a")
    assert resumed == written(radiographs)  # as if nothing had happened


def test_what_was_finished_before_a_power_cut_is_written(radiographs, monkeypatch):
    monkeypatch.setattr(predict, "SAVED_EVERY", 2)
    looked_at = predict.ImplantPredictor.told
    seen = []

    def picture(*_):
        path = radiographs / "out/implants.json"
        seen.append(len(json.loads(path.read_text(encoding="utf-8"))["images"]) if path.is_file() else 0)
        return Image.new("L", (9, 9))

    monkeypatch.setattr(predict, "_picture", picture)
    for name in ("two", "three", "four"):
        Image.fromarray(np.full((40, 60), 200, np.uint8)).save(radiographs / f"a/deep/{name}.png")
    assert run(radiographs, radiographs / "a") == len(looked_at)
    assert seen == [0, 0, 2, 2]


def test_only_the_same_run_is_resumed(radiographs):
    run(radiographs, radiographs / "a")
    with pytest.raises(DataError, match=r"min_score 0\.3, found 0\.5"):
        run(radiographs, radiographs / "a", min_score=0.5, resume=True)
    (radiographs / "run").mkdir()
    (radiographs / "run/assembler.json").write_text("of one calibration", encoding="utf-8")
    run(radiographs, radiographs / "b", run_dir=str(radiographs / "run"), out="other")
    (radiographs / "run/assembler.json").write_text("of another one", encoding="utf-8")
    with pytest.raises(DataError, match=r"written with model_digest '[0-9a-f]{12}', found '[0-9a-f]{12}'"):
        run(radiographs, radiographs / "b", run_dir=str(radiographs / "run"), out="other", resume=True)
    with pytest.raises(DataError, match="none is called so"):
        run(radiographs, radiographs / "b", resume=True)
    with pytest.raises(DataError, match="none is called so"):
        run(radiographs, radiographs / "a", radiographs / "b", resume=True)  # where its picture has another name
    (radiographs / "out/implants.json").unlink()
    with pytest.raises(DataError, match="or with --resume one"):
        run(radiographs, radiographs / "a", resume=True)


def test_names_are_told_apart_and_no_image_is_taken_twice(radiographs):
    levels = np.full((40, 60), 10, np.uint16) * 257
    levels[20, 30] = 65535
    (radiographs / "c").mkdir()
    Image.fromarray(levels).save(radiographs / "c/one.TIFF")
    (radiographs / "c/link.png").symlink_to(radiographs / "b/deep/one.png")
    (radiographs / "out").mkdir()  # empty
    assert run(radiographs, *(radiographs / folder for folder in "abcb")) == 3
    pictures = ["a_deep_one.png", "b_deep_one.png", "c_one.png"]
    assert [image["picture"] for image in written(radiographs)["images"]] == [
        name if name[0] != "c" else f"{radiographs.name}_{name}" for name in pictures
    ]
    with Image.open(radiographs / f"out/{radiographs.name}_c_one.png") as picture:  # sixteen bits look like eight
        assert np.asarray(picture)[2 * LINE, 0].tolist() == [10, 10, 10]


def test_names_take_as_few_folders_as_tell_them_apart():
    paths = [Path(name) for name in ("/one.png", "/a/b/one.png", "/c/b/ONE.png")]
    assert predict._names_of(paths) == ["one", "a_b_one", "c_b_ONE"]
    assert predict._names_of(paths[:2]) == ["one", "b_one"]
    deeper = [Path(f"/{folders}/one.png") for folders in ("x/y", "a/b/c", "d/b/c")]
    assert predict._names_of(deeper) == ["x_y_one", "a_b_c_one", "d_b_c_one"]
    assert predict._names_of([Path("/a/one.png"), Path("/a/one.tif")]) == ["one", "one"]  # which are numbered


def test_nothing_is_written_where_something_is_missing(radiographs):
    (radiographs / "empty").mkdir()
    for images, expected in ((["empty"], "empty: no image"), (["a", "c"], "c: no such file or folder")):
        with pytest.raises(DataError, match=expected):
            run(radiographs, *(radiographs / image for image in images))
    with pytest.raises(DataError, match=r"assembler\.json: damaged"):
        run(radiographs, radiographs / "a", run_dir="broken")
    (radiographs / "a/deep/one.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="1 of 1 images cannot be used\n"):
        run(radiographs, radiographs / "a")
    with pytest.raises(DataError, match="lies in"):
        run(radiographs, radiographs)
    assert not (radiographs / "out").exists()
    (radiographs / "out").touch()
    with pytest.raises(DataError, match="not empty"):
        run(radiographs, radiographs / "a")
    (radiographs / "out").unlink()
    (radiographs / "out").mkdir()
    (radiographs / "out/notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        run(radiographs, radiographs / "a")


@pytest.mark.skipif(os.name != "posix", reason="elsewhere every name is Unicode")
def test_a_name_that_is_no_utf8_is_told_before_anything_is_done(radiographs):
    (radiographs / "a/deep/one.png").rename(os.fsdecode(os.fsencode(radiographs) + b"/a/caf\xe9.png"))
    with pytest.raises(DataError, match="a name that is no UTF-8; rename it"):
        run(radiographs, radiographs / "a", radiographs / "b")
    assert not (radiographs / "out").exists()
