import json
import unicodedata

import pytest
from foreign import write_yolo

from implantdet.data.idd import load_idd
from implantdet.data.importing import import_dataset
from implantdet.data.problems import DataError


def import_with(tmp_path, text, **options):
    src = tmp_path / "src" if (tmp_path / "src").exists() else write_yolo(tmp_path / "src")
    (tmp_path / "patients.csv").write_text(text)
    return import_dataset(src, tmp_path / "out", patients=tmp_path / "patients.csv", **options)


def test_names_in_every_form(tmp_path):
    lines = "file_name,patient_id\na.jpg,p1\ntrain/images/b.png,p2\nc.png,p3\nother.png,p4\n"
    report = import_with(tmp_path, "\ufeff" + lines)  # as spreadsheets write it
    patients = [image["patient_id"] for image in load_idd(tmp_path / "out")["images"]]
    assert patients == ["p1", "p2", "p1", "p3"]
    assert report.notes == ("patients.csv: 1 line(s) name no image of the source",)


def test_names_however_their_letters_are_composed(tmp_path):
    src = write_yolo(tmp_path / "src")
    for folder, suffix in (("images", "png"), ("labels", "txt")):
        path = src / "valid" / folder / f"c.{suffix}"
        path.rename(path.with_name(unicodedata.normalize("NFD", f"Müller.{suffix}")))
    name = unicodedata.normalize("NFC", "Müller.png")
    import_with(tmp_path, f"file_name,patient_id\na,p1\nb.png,p2\n{name},p3\n")
    assert [image["patient_id"] for image in load_idd(tmp_path / "out")["images"]].count("p3") == 1


def test_an_image_without_patient_stops_or_is_left_out(tmp_path):
    lines = "patient_id,file_name\np1,a\np2,b.png\n"
    with pytest.raises(
        DataError, match=r"valid/labels/c\.txt: no patient: patients\.csv has no line for valid/images/c"
    ):
        import_with(tmp_path, lines)
    report = import_with(tmp_path, lines, skip=True)
    assert (report.images, report.rejected_images) == (3, 1)
    assert len(json.loads((tmp_path / "out/rejected.json").read_text())) == 1


def test_an_image_that_lines_give_two_patients_is_left_out(tmp_path):
    """Whichever of them it got, images of the other could stand on the other side of a split."""
    report = import_with(tmp_path, "file_name,patient_id\na,p1\na,p2\nb.png,p3\nc.png,p3\n", skip=True)
    images = load_idd(tmp_path / "out")["images"]
    assert [image["patient_id"] for image in images] == ["p3", "p3"]
    assert report.rejected_images == 2
    assert any("'a' is 'p1' and 'p2'" in problem.reason for problem in report.problems)


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        ("a,p1\na,p2", "record 3: duplicate file_name 'a' with another patient: 'p2', before 'p1'"),
        ("a,p1\nb.png,", "record 3: file_name or patient_id is empty"),
        ("a,p1\nb.png", "record 3: file_name or patient_id is empty"),
        (
            "a,p1\ntrain/images/a_jpg.rf.0a1b.jpg,p2",
            "names several patients: 'train/images/a_jpg.rf.0a1b.jpg' is 'p2', 'a' is 'p1'; its 2 annotation",
        ),
        ('a,"p1', "unexpected end of data|',' expected after '\"'"),
    ],
)
def test_lines_that_cannot_be_used(tmp_path, lines, line):
    with pytest.raises(DataError, match=line):
        import_with(tmp_path, f"file_name,patient_id\n{lines}\nb.png,p\nc.png,p\n")


def test_wrong_files(tmp_path):
    with pytest.raises(DataError, match="expected the columns file_name, patient_id; found name, id"):
        import_with(tmp_path, "name,id\na,b\n")
    with pytest.raises(DataError, match=r"patients file '.*none\.csv'"):
        import_dataset(tmp_path / "src", tmp_path / "out", patients=tmp_path / "none.csv")
