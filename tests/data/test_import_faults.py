"""Everything that can be wrong with the input is named, stops the import, or is left out and counted."""

import json

import pytest
from foreign import (
    NAN,
    WRITERS,
    add_label,
    coco_records,
    edit_coco,
    edit_json,
    labelme_records,
    truncate,
    write_image,
    yolo_records,
)

from implantdet.data.idd import load_idd
from implantdet.data.importing import import_dataset
from implantdet.data.problems import DataError

RECORDS = {"coco": coco_records, "yolo": yolo_records, "labelme": labelme_records}


def add(root, key, **fields):
    edit_json(root / "_annotations.coco.json", lambda content: content[key].append({**content[key][0], **fields}))


def shape(root, **fields):
    edit_json(root / "labels/a.json", lambda content: content["shapes"][0].update(fields))


def rename(root, stem, name):
    for folder, suffix in (("images", "png"), ("labels", "txt")):
        (root / "train" / folder / f"{stem}.{suffix}").rename(root / "train" / folder / f"{name}.{suffix}")


def link(path, target):
    path.unlink()
    path.symlink_to(target)


# format, what breaks it, the line about it, images and annotations lost
FAULTS = {
    "yolo-truncated": (
        "yolo",
        lambda r: truncate(r / "train/images/b.png"),
        "train/labels/b.txt: train/images/b.png: unreadable image.*its 1 ",
        1,
        1,
    ),
    "yolo-truncated-jpeg": (
        "yolo",
        lambda r: truncate(r / "train/images/a_jpg.rf.0a1b.jpg", 0.95),
        "truncated.*its 2 anno",
        1,
        2,
    ),
    "yolo-no-image": ("yolo", lambda r: (r / "train/images/b.png").write_text("text"), "unreadable image", 1, 1),
    "yolo-outside": (
        "yolo",
        lambda r: add_label(r, "0 0.9 0.5 0.3 0.1"),
        r"b.txt: line 2: box outside the frame of 80×60",
        0,
        1,
    ),
    "yolo-far-outside": ("yolo", lambda r: add_label(r, "0 7 7 0.3 0.1"), "b.txt: line 2: box outside", 0, 1),
    "yolo-no-area": ("yolo", lambda r: add_label(r, "0 0.5 0.5 0 0.1"), "b.txt: line 2: box without area", 0, 1),
    "yolo-nan": ("yolo", lambda r: add_label(r, "0 nan 0.5 0.1 0.1"), "b.txt: line 2: .*four finite numbers", 0, 1),
    "yolo-polygon-nan": ("yolo", lambda r: add_label(r, "0 nan 0 1 0 1 1"), "b.txt: line 2: .*finite numbers", 0, 1),
    "yolo-class": ("yolo", lambda r: add_label(r, "2 0.5 0.5 0.1 0.1"), "b.txt: line 2: unknown class: '2'", 0, 1),
    "yolo-class-digits": (
        "yolo",
        lambda r: add_label(r, "9" * 5000 + " 0.5 0.5 0.1 0.1"),
        "line 2: unknown class: '9+…; there are",
        0,
        1,
    ),
    "yolo-backslash": (
        "yolo",
        lambda r: rename(r, "b", "x\\..\\b"),
        "path 'train/x.*b.png' leaves its folder; its 1 annotation",
        1,
        1,
    ),
    "yolo-class-name": ("yolo", lambda r: add_label(r, "ITI 0.5 0.5 0.1 0.1"), "line 2: unknown class: 'ITI'", 0, 1),
    "yolo-word": ("yolo", lambda r: add_label(r, "0 0.5 0.5 0.1 wide"), "line 2: not a number: .*wide", 0, 1),
    "yolo-fields": ("yolo", lambda r: add_label(r, "0 0.5 0.5 0.1 0.1 0.9"), "line 2: 6 fields; expected 5", 0, 1),
    "yolo-missing-label": (
        "yolo",
        lambda r: (r / "train/labels/b.txt").unlink(),
        "train/images/b.png: missing label",
        1,
        0,
    ),
    "yolo-missing-image": (
        "yolo",
        lambda r: (r / "train/images/b.png").unlink(),
        "train/labels/b.txt: missing image: its 1",
        0,
        1,
    ),
    "yolo-two-images": (
        "yolo",
        lambda r: write_image(r / "train/images/b.tif"),
        "b.tif: shares the label train/labels/b.txt",
        1,
        0,
    ),
    "yolo-binary": (
        "yolo",
        lambda r: (r / "train/labels/b.txt").write_bytes(b"\xff\xfe\xfa"),
        "label is not a text file",
        1,
        0,
    ),
    "yolo-link": (
        "yolo",
        lambda r: link(r / "train/images/b.png", "/etc/hostname"),
        "link that leaves the folder.*its 1",
        1,
        1,
    ),
    "yolo-label-link": (
        "yolo",
        lambda r: link(r / "train/labels/b.txt", "/etc/hostname"),
        "label: a link that leaves",
        1,
        0,
    ),
    "coco-truncated": (
        "coco",
        lambda r: truncate(r / "a.jpg"),
        "image 0: a.jpg: unreadable image.*its 2 annotation",
        1,
        2,
    ),
    "coco-size": (
        "coco",
        lambda r: edit_coco(r, "images", 0, width=81),
        "image 0: image a.jpg is 80×60, its record says 81×60",
        1,
        2,
    ),
    "coco-outside": (
        "coco",
        lambda r: edit_coco(r, "annotations", 0, bbox=[70, 0, 12, 5]),
        "annotation 0: box outside",
        0,
        1,
    ),
    "coco-huge": (
        "coco",
        lambda r: edit_coco(r, "annotations", 0, bbox=[10**400, 0, 12, 5]),
        "annotation 0: 'bbox' must be four finite numbers .*…$",
        0,
        1,
    ),
    "coco-no-area": (
        "coco",
        lambda r: edit_coco(r, "annotations", 0, bbox=[70, 0, 0, 5]),
        "annotation 0: box without area",
        0,
        1,
    ),
    "coco-nan": (
        "coco",
        lambda r: edit_coco(r, "annotations", 0, bbox=[NAN, 0, 2, 5]),
        "annotation 0: 'bbox' must be four",
        0,
        1,
    ),
    "coco-no-box": (
        "coco",
        lambda r: edit_coco(r, "annotations", 0, bbox=None),
        "annotation 0: 'bbox' must be four",
        0,
        1,
    ),
    "coco-class": (
        "coco",
        lambda r: edit_coco(r, "annotations", 0, category_id=9),
        "annotation 0: unknown class: category_id 9",
        0,
        1,
    ),
    "coco-annotation-id": ("coco", lambda r: edit_coco(r, "annotations", 1, id=0), "annotation 0: duplicate id", 0, 1),
    "coco-odd-id": (
        "coco",
        lambda r: edit_coco(r, "annotations", 1, id=[1]),
        "annotation number 2: .*must be numbers",
        0,
        1,
    ),
    "coco-image-id": (
        "coco",
        lambda r: edit_coco(r, "images", 2, id=0),
        "image 0: duplicate id: a.jpg has it too",
        2,  # nobody knows which of them the annotations mean
        2,
    ),
    "coco-category-id": (
        "coco",
        lambda r: edit_coco(r, "categories", 2, id=1),
        "category 1: duplicate id: 'Bicon'",
        0,
        4,
    ),
    "coco-same-file": ("coco", lambda r: add(r, "images", id=7), "image 7: duplicate image: a.jpg", 1, 0),
    "coco-missing-image": (
        "coco",
        lambda r: (r / "a.jpg").unlink(),
        "image 0: missing image: no file 'a.jpg'.*its 2",
        1,
        2,
    ),
    "coco-case": (
        "coco",
        lambda r: (r / "a.jpg").rename(r / "A.jpg"),
        "missing image: no file 'a.jpg' in the source; there is A.jpg",
        1,
        2,
    ),
    "coco-unknown-image": (
        "coco",
        lambda r: edit_coco(r, "annotations", 0, image_id=77),
        "annotation 0: .*unknown image: image_id 77",
        0,
        1,
    ),
    "coco-parent": (
        "coco",
        lambda r: edit_coco(r, "images", 0, file_name="../a.jpg"),
        "image 0: path '../a.jpg' leaves its folder",
        1,
        2,
    ),
    "coco-absolute": (
        "coco",
        lambda r: edit_coco(r, "images", 0, file_name=str(r / "a.jpg")),
        "path .*a.jpg' is absolute",
        1,
        2,
    ),
    "coco-drive": (
        "coco",
        lambda r: edit_coco(r, "images", 0, file_name="C:\\a.jpg"),
        "path 'C:/a.jpg' is absolute",
        1,
        2,
    ),
    "coco-no-name": (
        "coco",
        lambda r: edit_coco(r, "images", 0, file_name=None),
        "missing image: the record names no file",
        1,
        2,
    ),
    "coco-crowd": ("coco", lambda r: edit_coco(r, "annotations", 0, iscrowd=1), "annotation 0: .*iscrowd", 0, 1),
    "coco-size-text": (
        "coco",
        lambda r: edit_coco(r, "images", 0, width="80"),
        "image a.jpg is 80×60, its record says '80'×60",
        1,
        2,
    ),
    "coco-link": (
        "coco",
        lambda r: (r / "other.json").symlink_to("/etc/hostname"),
        "other.json: .*a link that leaves the folder",
        0,
        0,
    ),
    "coco-digits": (
        "coco",
        lambda r: (r / "other.json").write_text("9" * 5000),
        "other.json: .*not a JSON file: .*digits",
        0,
        0,
    ),
    "coco-nested-runs": (
        "coco",
        lambda r: edit_coco(r, "annotations", 2, segmentation={"size": [60, 80], "counts": [[0, 2400], [2000, 400]]}),
        "annotation 2: mask cannot be decoded: .*must be whole numbers that add up to 4800",
        0,
        1,
    ),
    "coco-polygon": (
        "coco",
        lambda r: edit_coco(r, "annotations", 2, segmentation=[[1, 2, 3, 4]]),
        "annotation 2: a polygon must be",
        0,
        1,
    ),
    "coco-mask-size": (
        "coco",
        lambda r: edit_coco(r, "annotations", 2, segmentation={"size": [5, 5], "counts": [25]}),
        "mask size",
        0,
        1,
    ),
    "coco-fraction": (
        "coco",
        lambda r: edit_coco(r, "annotations", 2, visible_fraction=2),
        "'visible_fraction' must be",
        0,
        1,
    ),
    "coco-modality": (
        "coco",
        lambda r: edit_coco(r, "images", 0, modality="CT"),
        "image 0: 'modality' must be one of",
        1,
        2,
    ),
    "coco-not-json": ("coco", lambda r: (r / "other.json").write_text("{"), "other.json: .*not a JSON file", 0, 0),
    "coco-not-object": (
        "coco",
        lambda r: edit_json(r / "_annotations.coco.json", lambda c: c["images"].append(3)),
        "images, number 4: expected an object",
        1,
        0,
    ),
    "labelme-missing-image": (
        "labelme",
        lambda r: (r / "images/a.png").unlink(),
        "labels/a.json: missing image.*its 2",
        1,
        2,
    ),
    "labelme-missing-label": ("labelme", lambda r: (r / "labels/a.json").unlink(), "images/a.png: missing label", 1, 0),
    "labelme-size": (
        "labelme",
        lambda r: edit_json(r / "labels/a.json", lambda c: c.update(imageWidth=9)),
        "80×60, its record says 9×60",
        1,
        2,
    ),
    "labelme-circle": (
        "labelme",
        lambda r: shape(r, shape_type="circle"),
        "labels/a.json: shape 1: shape of type 'circle'",
        0,
        1,
    ),
    "labelme-nan": (
        "labelme",
        lambda r: shape(r, points=[[NAN, 1], [2, 3]]),
        "shape 1: 'points' must be pairs of finite",
        0,
        1,
    ),
    "labelme-point": ("labelme", lambda r: shape(r, points=[[1, 1]]), r"shape 1: a rectangle of 1 point\(s\)", 0, 1),
    "labelme-no-label": ("labelme", lambda r: shape(r, label=""), "shape 1: unknown class", 0, 1),
    "labelme-outside": (
        "labelme",
        lambda r: shape(r, points=[[50, 50], [90, 55]]),
        "shape 1: box outside the frame",
        0,
        1,
    ),
    "labelme-flat": ("labelme", lambda r: shape(r, points=[[50, 50], [60, 50]]), "shape 1: box without area", 0, 1),
    "labelme-leaves": (
        "labelme",
        lambda r: (
            (r / "images/a.png").unlink(),
            edit_json(r / "labels/a.json", lambda c: c.update(imagePath="../../a.png")),
        ),
        "path '../a.png' leaves its folder",
        1,
        2,
    ),
}
SEVERAL_LINES = {"coco-category-id": 5, "coco-image-id": 2}


@pytest.mark.parametrize(("name", "spoil", "line", "images", "annotations"), FAULTS.values(), ids=FAULTS)
def test_fault(name, spoil, line, images, annotations, tmp_path, request):
    src, out = WRITERS[name](tmp_path / "src"), tmp_path / "out"
    spoil(src)
    with pytest.raises(DataError, match=line) as caught:
        import_dataset(src, out, source_format=name)
    assert len(caught.value.problems) == SEVERAL_LINES.get(request.node.callspec.id, 1), caught.value
    assert [path.name for path in tmp_path.iterdir()] == ["src"], "nothing is written"

    report = import_dataset(src, out, source_format=name, skip=True)
    assert (report.rejected_images, report.rejected_annotations) == (images, annotations)
    rejected = json.loads((out / "rejected.json").read_text())
    assert [f"{r['file']}: {r['record']}: {r['reason']}".replace(": : ", ": ") for r in rejected] == [
        str(problem) for problem in caught.value.problems
    ]
    content = load_idd(out)
    assert (len(content["images"]), len(content["annotations"])) == (report.images, report.annotations)
    counted = (report.images + report.rejected_images, report.annotations + report.rejected_annotations)
    assert counted == RECORDS[name](src), "every record is in the dataset or rejected"
