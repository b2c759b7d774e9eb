import os
import unicodedata
from pathlib import PurePosixPath

import pytest

from implantdet.data.problems import DataError
from implantdet.data.source import FileIndex, original_name, split_of


@pytest.fixture
def index(tmp_path):
    for name in ("train/images/a.png", "valid/images/a.png", "one/b.png", "one/labels/x.json", ".hidden/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return FileIndex(tmp_path.resolve())


@pytest.mark.parametrize(
    ("name", "beside", "path"),
    [
        ("b.png", "x.json", "one/b.png"),
        ("one/b.png", "x.json", "one/b.png"),
        ("one\\b.png", "x.json", "one/b.png"),
        ("../b.png", "one/labels/x.json", "one/b.png"),
        ("train/images/a.png", "x.json", "train/images/a.png"),
        ("a.png", "train/x.json", "train/images/a.png"),
        ("a.png", "valid/labels.json", "valid/images/a.png"),
        ("valid/images/a.png", "x.json", "valid/images/a.png"),
    ],
)
def test_files_are_found(index, name, beside, path):
    assert index.find(name, PurePosixPath(beside)) == (PurePosixPath(path), None)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.png", "stands for 2 files: train/images/a.png, valid/images/a.png"),
        ("B.PNG", "missing image: no file 'B.PNG' in the source; there is one/b.png"),
        ("c.png", "missing image: no file 'c.png' in the source"),
        ("../b.png", "leaves its folder"),
        ("", "names no file"),
        (7, "names no file"),
    ],
)
def test_files_that_are_not_there(index, name, reason):
    assert reason in index.find(name, PurePosixPath("x.json"))[1]


def test_the_record_s_own_folder_goes_before_longer_paths(tmp_path):
    for name in ("images/a.png", "images/train/a.png", "images/x/images/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    index = FileIndex(tmp_path.resolve())
    for name in ("a.png", "train/a.png"):  # as in a dataset folder of ours
        assert index.find(name, PurePosixPath("annotations.json")) == (PurePosixPath("images") / name, None)
    (tmp_path / "a.png").touch()
    assert "stands for 4 files" in FileIndex(tmp_path.resolve()).find("a.png", PurePosixPath("x.json"))[1]


def test_a_record_of_one_split_means_no_file_of_another(tmp_path):
    for name in ("valid/a.png", "images/b.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    index = FileIndex(tmp_path.resolve())
    given, fault = index.find("a.png", PurePosixPath("train/x.json"))
    assert (str(given), fault) == ("a.png", "missing image: no file 'a.png' in the source; there is valid/a.png")
    assert index.find("b.png", PurePosixPath("train/x.json")) == (PurePosixPath("images/b.png"), None)
    assert index.find("a.png", PurePosixPath("labels/x.json")) == (PurePosixPath("valid/a.png"), None)
    # However the folder is spelled, and unless the record says so.
    for folder in ("annotations/Valid", "labels/val"):
        assert index.find("a.png", PurePosixPath(folder) / "x.json") == (PurePosixPath("valid/a.png"), None)
    for name in ("../valid/a.png", "valid/a.png"):
        assert index.find(name, PurePosixPath("train/x.json")) == (PurePosixPath("valid/a.png"), None)
    (tmp_path / "images/train").mkdir()
    (tmp_path / "images/train/a.png").touch()
    index = FileIndex(tmp_path.resolve())
    assert index.find("a.png", PurePosixPath("labels/train/x.json")) == (PurePosixPath("images/train/a.png"), None)


def test_images_are_told_by_suffix_and_dicom_files_by_their_content(tmp_path):
    for name in ("images/a.png", "images/a.json", "images/Thumbs.db", "images/scan", "other/scan", "other/b.JPG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(128) + b"DICM" if name.endswith("scan") else b"")
    assert [str(path) for path in FileIndex(tmp_path).images()] == ["images/a.png", "images/scan", "other/b.JPG"]


def test_what_is_left_aside_is_named(index, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "one")
    assert FileIndex(tmp_path).notes() == [
        "link: a link to a folder, not followed",
        "1 hidden file(s), such as .hidden/c.png: left aside",
    ]


def test_names_that_no_json_file_can_hold(tmp_path):
    os.mkdir(os.fsencode(tmp_path) + b"/\xf0")  # noqa: PTH102  a name of another system's encoding
    with open(os.fsencode(tmp_path) + b"/\xf0/a.png", "w"):  # noqa: PTH123
        pass
    with pytest.raises(DataError, match=r"the file name b'\\xf0/a\.png' is not UTF-8"):
        FileIndex(tmp_path)


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("Bicon-103_jpg.rf.0a1b2c3d.jpg", "Bicon-103.jpg"),
        ("Bicon-103_png.rf.0a1b2c3d.jpg", "Bicon-103.png"),
        ("a_b_PNG.rf.XyZ9.png", "a_b.PNG"),
        ("x_jpg.rf.0a1b.txt", "x.jpg"),
        ("plain.jpg", None),
        ("a.rf.jpg", None),
        ("a.rf.0a1b.jpg", None),
    ],
)
def test_roboflow_names(name, original):
    assert original_name(PurePosixPath("train") / name) == (original and PurePosixPath(original))


@pytest.mark.parametrize(("written", "asked"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_are_one_however_their_letters_are_composed(tmp_path, written, asked):
    """A Mac decomposes the names of files."""
    name, record = (unicodedata.normalize(form, "a/Müller.png") for form in (written, asked))
    assert name != record
    (tmp_path / "a").mkdir()
    (tmp_path / name).touch()
    assert FileIndex(tmp_path).find(record, PurePosixPath("x.json")) == (PurePosixPath(name), None)


def test_split_is_the_folder_named_after_one():
    assert split_of(PurePosixPath("x/valid/images/a.png")) == {"split": "valid"}
    assert split_of(PurePosixPath("images/valid.png")) == {}
