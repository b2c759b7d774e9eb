"""The whole import: what comes in goes out, and what is wrong is named, for every format."""

import os
from pathlib import Path

import pytest
from foreign import (
    HEIGHT,
    WIDTH,
    WRITERS,
    add_label,
    edit_coco,
    edit_json,
    tree,
    truncate,
    write_coco,
    write_image,
    write_yolo,
)
from PIL import Image

from implantdet.data.idd import load_idd
from implantdet.data.importing import import_dataset
from implantdet.data.problems import DataError

# images, annotations in each of them
COUNTS = {"coco": (3, 4), "yolo": (4, 5), "labelme": (2, 3)}


@pytest.mark.parametrize("name", WRITERS)
def test_format_is_detected_and_everything_arrives(name, tmp_path):
    src = WRITERS[name](tmp_path / "src")
    before = tree(src)
    report = import_dataset(src, tmp_path / "out")
    content = load_idd(tmp_path / "out")
    assert report.source_format == name
    assert (report.images, report.annotations) == COUNTS[name] == (len(content["images"]), len(content["annotations"]))
    assert (report.rejected_images, report.rejected_annotations, report.clipped, report.problems) == (0, 0, 0, ())
    assert tree(src) == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["annotations.json", "images"]
    copies = tree(tmp_path / "out" / "images")
    originals = [data for path, data in before.items() if path.endswith((".jpg", ".png"))]
    assert sorted(copies.values()) == sorted(originals), "images are copied byte for byte"


def test_equal_names_in_two_splits_stay_apart(tmp_path):
    import_dataset(write_yolo(tmp_path / "src"), tmp_path / "out")
    images = load_idd(tmp_path / "out")["images"]
    assert [(image["file_name"], image["split"]) for image in images] == [
        ("train/a_jpg.rf.0a1b.jpg", "train"),
        ("train/b.png", "train"),
        ("valid/a_jpg.rf.0a1b.jpg", "valid"),
        ("valid/c.png", "valid"),
    ]
    assert [image.get("source_id") for image in images] == ["a", None, "a", None]


def test_all_problems_are_listed(tmp_path):
    src = write_yolo(tmp_path / "src")
    for line in ["0 nan 0 0 0"] * 30:
        add_label(src, line)
    truncate(src / "valid/images/c.png")
    with pytest.raises(DataError, match="31 problem") as caught:
        import_dataset(src, tmp_path / "out")
    assert [problem.record for problem in caught.value.problems[:2]] == ["line 2", "line 3"]
    assert len(caught.value.problems) == 31


def test_nothing_usable_is_an_error_even_when_skipping(tmp_path):
    src = write_coco(tmp_path / "src")
    for image in ("a.jpg", "b.png", "c.png"):
        (src / image).unlink()
    with pytest.raises(DataError, match="no usable image"):
        import_dataset(src, tmp_path / "out", skip=True)
    edit_json(src / "_annotations.coco.json", lambda content: content.pop("categories"))
    with pytest.raises(DataError, match=r"no usable image.*\n  note: .*it is no COCO file: it has no categories"):
        import_dataset(src, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_overhang_by_a_hair_is_cut_off_and_counted(tmp_path):
    src = write_coco(tmp_path / "src")
    edit_coco(src, "annotations", 0, bbox=[-0.9, 10, 20, 50.9])
    report = import_dataset(src, tmp_path / "out")
    assert report.clipped == 1
    annotation = load_idd(tmp_path / "out")["annotations"][0]
    assert annotation["bbox"] == pytest.approx([0, 10, 19.1, 50])
    assert annotation["area"] == pytest.approx(19.1 * 50)


def test_a_polygon_drawn_beyond_the_edge_is_cut_off(tmp_path):
    src = write_coco(tmp_path / "src")
    edit_coco(src, "annotations", 2, bbox=[0, 10, 20, 20], segmentation=[[-7, 10, 20, 10, 20, 30, -7, 30]])
    assert import_dataset(src, tmp_path / "out").clipped == 1
    annotation = load_idd(tmp_path / "out")["annotations"][2]
    assert (annotation["segmentation"], annotation["area"]) == ([[0, 10, 20, 10, 20, 30, 0, 30]], 400)


def test_names_are_mapped_and_systems_are_recognised(tmp_path):
    src = write_yolo(tmp_path / "src")
    import_dataset(src, tmp_path / "out", names={"x": "middle.thread.v_shaped"})
    categories = load_idd(tmp_path / "out")["categories"]
    assert [(category["name"], category["supercategory"]) for category in categories] == [
        ("ITI", "system"),
        ("middle.thread.v_shaped", "middle"),
    ]
    import_dataset(src, tmp_path / "merged", names={"x": "ITI"})
    assert {a["category_id"] for a in load_idd(tmp_path / "merged")["annotations"]} == {1}
    with pytest.raises(DataError, match="map: no class 'y' in the source; it has 'ITI', 'x'"):
        import_dataset(src, tmp_path / "wrong", names={"y": "ITI"})


def test_half_a_character_is_named(tmp_path):
    src = write_coco(tmp_path / "src")
    edit_coco(src, "categories", 1, name="\ud83d")
    with pytest.raises(DataError, match=r"half a character in it, near '.*\\ud83d"):
        import_dataset(src, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_output_must_be_free(tmp_path):
    src = write_yolo(tmp_path / "src")
    out = tmp_path / "out"
    out.mkdir()
    import_dataset(src, out)
    before = tree(out)
    with pytest.raises(DataError, match="exists already"):
        import_dataset(src, out)
    assert tree(out) == before


def test_a_place_that_cannot_be_filled_is_refused_before_the_work(tmp_path, monkeypatch):
    src = write_yolo(tmp_path / "src")
    (tmp_path / "volume").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "ismount", lambda path: Path(path).name == "volume")
        with pytest.raises(DataError, match=r"volume' is the root of a volume.*name one below it"):
            import_dataset(src, tmp_path / "volume")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DataError, match=rf"nothing can be written in '{tmp_path}'"):
        import_dataset(src, tmp_path / "new" / "out")


def test_an_interrupted_copy_leaves_nothing(tmp_path, monkeypatch):
    src = write_yolo(tmp_path / "src")

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.copyfile", interrupt)
    with pytest.raises(KeyboardInterrupt):
        import_dataset(src, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_what_a_killed_import_left_does_not_get_in(tmp_path):
    """In a container every process has the same number, so the same temporary folder."""
    left = tmp_path / f".out.{os.getpid()}"
    write_image(left / "images/of_another_source.png")
    (left / "rejected.json").write_text("[]")
    import_dataset(write_yolo(tmp_path / "src"), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["annotations.json", "images"]
    assert len(tree(tmp_path / "out/images")) == 4
    assert not left.exists()


def test_names_that_differ_by_case_only_do_not_collide_on_other_systems(tmp_path):
    src = write_yolo(tmp_path / "src")
    write_image(src / "train/images/B.PNG", 9)
    (src / "train/labels/B.txt").write_text("")
    with pytest.raises(DataError, match=r"duplicate image: train/images/B\.PNG has the same name"):
        import_dataset(src, tmp_path / "out")


def test_unrecognised_sources(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        import_dataset(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "src").mkdir()
    with pytest.raises(DataError, match="format not recognised; found no files, expected images with annotations"):
        import_dataset(tmp_path / "src", tmp_path / "out")
    write_image(tmp_path / "src/a.png", 1)
    with pytest.raises(DataError, match=r"format not recognised; found 1 \.png, expected"):
        import_dataset(tmp_path / "src", tmp_path / "out")
    (tmp_path / "src" / "x.json").write_text("{")
    with pytest.raises(DataError, match=r"x\.json: not a JSON file"):
        import_dataset(tmp_path / "src", tmp_path / "out")


def test_exif_orientation_is_applied_as_detectron2_does(tmp_path):
    src = write_coco(tmp_path / "src")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.new("L", (HEIGHT, WIDTH)).save(src / "a.jpg", exif=exif)
    import_dataset(src, tmp_path / "out")
    image = load_idd(tmp_path / "out")["images"][0]
    assert (image["width"], image["height"]) == (WIDTH, HEIGHT)
