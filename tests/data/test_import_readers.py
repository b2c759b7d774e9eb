"""What the readers of single formats know that the others do not."""

import json

import numpy as np
import pytest
from foreign import (
    HEIGHT,
    WIDTH,
    coco_content,
    edit_json,
    labelme_content,
    write_coco,
    write_image,
    write_labelme,
    write_yolo,
)
from pycocotools import mask as mask_utils

from implantdet.data.idd import load_idd
from implantdet.data.import_coco import read_coco
from implantdet.data.import_labelme import read_labelme
from implantdet.data.import_yolo import read_yolo
from implantdet.data.importing import import_dataset
from implantdet.data.problems import DataError


def boxes(root):
    return [annotation["bbox"] for annotation in load_idd(root)["annotations"]]


def test_yolo_boxes_in_pixels_by_hand(tmp_path):
    import_dataset(write_yolo(tmp_path / "src"), tmp_path / "out")
    # 80 × 60: centre (0.5, 0.5), size (0.25, 0.5) is 20 × 30 around (40, 30).
    assert boxes(tmp_path / "out")[:3] == [[30, 15, 20, 30], [16, 24, 8, 12], [0, 0, 80, 60]]


def test_yolo_polygons_in_pixels_by_hand(tmp_path):
    src = write_yolo(tmp_path / "src")
    (src / "valid/labels/c.txt").write_text("0 0.25 0.5 0.75 0.5 0.75 1.0 0.25 1.0\n")
    import_dataset(src, tmp_path / "out")
    annotation = load_idd(tmp_path / "out")["annotations"][-1]
    assert annotation["segmentation"] == [[20, 30, 60, 30, 60, 60, 20, 60]]
    assert (annotation["bbox"], annotation["area"]) == ([20, 30, 40, 30], 1200)


@pytest.mark.parametrize(
    ("file", "text", "names"),
    [
        ("data.yaml", "names: {0: a, 1: b}", ["a", "b"]),
        ("dataset.yml", "names: [a, b]\nnc: 2", ["a", "b"]),
        ("classes.txt", "a\nb\n\n", ["a", "b"]),
        ("labels/classes.txt", "a\nb", ["a", "b"]),
        ("obj.names", "a\nb", ["a", "b"]),
    ],
)
def test_yolo_class_names(tmp_path, file, text, names):
    write_image(tmp_path / "images/a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("1 0.5 0.5 0.5 0.5")
    (tmp_path / file).write_text(text)
    source = read_yolo(tmp_path)
    assert list(source.classes) == names
    assert (source.images[0].objects[0].label, source.problems) == ("b", [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a, a]", "class names, none of them empty or there twice"),
        ("names: [a]\nkpt_shape: [2, 3]", r"labels with keypoints \('kpt_shape'\); expected boxes or polygons"),
        ("names: {1: a, 2: b}", "must number the classes from 0"),
        ("nc: 3\nnames: [a, b]", "nc=3"),
        ("names: {0: a, x: b}", r"must number the classes from 0 on; found \[0, 'x'\]"),
        ("names: [", "not a YAML file"),
        ("date: 2024-99-99", "not a YAML file: month must be"),
        ("path: x", "no class names"),
    ],
)
def test_yolo_wrong_class_names(tmp_path, text, message):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        read_yolo(tmp_path)


def test_yolo_class_names_without_one_between_others(tmp_path):
    (tmp_path / "classes.txt").write_text("Bego\n\nITI\n")
    with pytest.raises(DataError, match=r"classes\.txt: expected class names, none of them empty .*'Bego', '', 'ITI'"):
        read_yolo(tmp_path)


@pytest.mark.parametrize("name", ["data.yaml", "classes.txt"])
def test_yolo_exports_that_number_their_classes_differently_are_not_mixed(tmp_path, name):
    """Labels of one folder would get the classes of the other."""
    texts = ["names: [Bego, ITI]", "names: [ITI, Bego]"] if name == "data.yaml" else ["Bego\nITI\n", "ITI\nBego\n"]
    for folder, text in zip("ab", texts, strict=True):
        write_image(tmp_path / folder / "images/x.png", ord(folder))
        (tmp_path / folder / "labels").mkdir()
        (tmp_path / folder / "labels/x.txt").write_text("0 0.5 0.5 0.5 0.5")
        (tmp_path / folder / name).write_text(text)
    message = rf"a/{name} and b/{name} list other class names, \['Bego', 'ITI'\] and \['ITI', 'Bego'\]"
    with pytest.raises(DataError, match=message):
        read_yolo(tmp_path)
    (tmp_path / "b" / name).write_text(texts[0])
    assert [image.objects[0].label for image in read_yolo(tmp_path).images] == ["Bego", "Bego"]


def test_yolo_class_names_that_are_no_text_or_lie_elsewhere(tmp_path):
    (tmp_path / "classes.txt").write_bytes("имплант".encode("cp1251"))
    with pytest.raises(DataError, match=r"classes\.txt: class names must be UTF-8 text"):
        read_yolo(tmp_path)
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "data.yaml").symlink_to("/etc/hostname")
    with pytest.raises(DataError, match=r"data\.yaml: a link that leaves the folder, to /etc/hostname"):
        read_yolo(tmp_path)


def test_yolo_label_beside_its_image(tmp_path):
    write_image(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "classes.txt").write_text("x")
    source = read_yolo(tmp_path)
    assert (len(source.images), len(source.images[0].objects), source.problems) == (1, 1, [])


def test_yolo_label_beside_its_image_in_a_folder_named_images(tmp_path):
    write_image(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "classes.txt").write_text("x")
    source = read_yolo(tmp_path)
    assert [(str(i.path), i.file, len(i.objects), i.fault) for i in source.images] == [
        ("images/a.png", "images/a.txt", 1, None)
    ]
    assert source.problems == []


def test_yolo_images_of_any_suffix_that_a_label_speaks_of(tmp_path):
    write_image(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / "a.jfif")
    (tmp_path / "images" / "Thumbs.db").touch()
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "classes.txt").write_text("x")
    source = read_yolo(tmp_path)
    assert [(str(image.path), image.fault) for image in source.images] == [("images/a.jfif", None)]
    assert source.problems == []


def test_a_linked_folder_is_not_followed_but_named(tmp_path):
    src = write_yolo(tmp_path / "src")
    (tmp_path / "elsewhere").mkdir()
    (src / "more").symlink_to(tmp_path / "elsewhere")
    assert read_yolo(src).notes == ["more: a link to a folder, not followed"]


def test_coco_annotator_export(tmp_path):
    """Its absolute paths, boolean iscrowd, outlines of boxes as masks, and fields that people enter as metadata."""
    src = tmp_path / "src"
    write_image(src / "periapical/1.png", 0)
    write_image(src / "panoramic/1.png", 1)
    image = {"width": WIDTH, "height": HEIGHT, "file_name": "1.png", "dataset_id": 3, "license": None}
    box = {"category_id": 5, "bbox": [10.0, 20.0, 30.0, 15.0], "iscrowd": False, "color": "#fff", "area": 450}
    outline = [[10, 20, 40, 20, 40, 35, 10, 35]]
    content = {
        "images": [
            {**image, "id": 11, "path": "/datasets/idd/panoramic/1.png"},
            {**image, "id": 12, "path": "/datasets/idd/periapical/1.png"},
        ],
        "categories": [{"id": 5, "name": "ITI", "supercategory": "", "color": "#fff", "metadata": {}}],
        "annotations": [
            {**box, "id": 1, "image_id": 11, "isbbox": True, "segmentation": outline, "metadata": {"implant_id": "3"}},
            {**box, "id": 2, "image_id": 11, "isbbox": False, "segmentation": outline, "metadata": {"implant_id": ""}},
            {**box, "id": 3, "image_id": 12, "isbbox": False, "segmentation": outline, "metadata": {"implant_id": "3"}},
        ],
    }
    (src / "idd-1.json").write_text(json.dumps(content))
    report = import_dataset(src, tmp_path / "out")
    assert report.notes == ("idd-1.json: 1 annotation(s) were drawn as boxes (isbbox); their rectangles are no masks",)
    imported = load_idd(tmp_path / "out")
    assert [record["file_name"] for record in imported["images"]] == ["panoramic/1.png", "periapical/1.png"]
    assert [sorted({"segmentation", "implant_id"} & set(a)) for a in imported["annotations"]] == [
        ["implant_id"],
        ["segmentation"],
        ["implant_id", "segmentation"],
    ]
    # People number the implants of each image.
    assert [a.get("implant_id") for a in imported["annotations"]] == [1, None, 2]


def test_the_path_of_coco_annotator_goes_before_a_name_without_folders(tmp_path):
    for seed, name in enumerate(("a.jpg", "panoramic/a.jpg")):
        write_image(tmp_path / name, seed)
    content = coco_content()
    content["images"] = [content["images"][0] | {"file_name": "a.jpg", "path": "/datasets/idd/panoramic/a.jpg"}]
    content["annotations"] = []
    (tmp_path / "export.json").write_text(json.dumps(content))
    assert [str(image.path) for image in read_coco(tmp_path).images] == ["panoramic/a.jpg"]


def test_fractions_in_the_metadata_of_coco_annotator_are_left_aside(tmp_path):
    """It stores 0.8 as 0; a scale of a record of its own is kept."""
    src = tmp_path / "src"
    write_image(src / "1.png", 0)
    image = {"id": 1, "file_name": "1.png", "width": WIDTH, "height": HEIGHT, "mm_per_pixel": 0.1}
    fields = {"visible_fraction": 0, "mm_per_pixel": 0, "product_line": "ITI BLT", "axis": ""}
    annotation = {"id": 1, "image_id": 1, "category_id": 5, "bbox": [10.0, 20.0, 30.0, 15.0], "metadata": fields}
    content = {"images": [image], "annotations": [annotation], "categories": [{"id": 5, "name": "ITI"}]}
    (src / "idd-1.json").write_text(json.dumps(content))
    report = import_dataset(src, tmp_path / "out")
    (note,) = report.notes
    assert note.startswith("idd-1.json: mm_per_pixel, visible_fraction in the metadata left aside")
    imported = load_idd(tmp_path / "out")
    assert imported["images"][0]["mm_per_pixel"] == 0.1
    (found,) = imported["annotations"]
    assert (found["product_line"], "visible_fraction" in found, "mm_per_pixel" in found) == ("ITI BLT", False, False)


def test_roboflow_coco_with_a_file_per_split(tmp_path):
    src = tmp_path / "src"
    for split in ("train", "valid"):
        write_coco(src / split)
    report = import_dataset(src, tmp_path / "out")
    assert (report.images, report.annotations) == (6, 8)
    content = load_idd(tmp_path / "out")
    assert [(c["name"], c["supercategory"]) for c in content["categories"]] == [("Bicon", "system"), ("screw", "teeth")]
    assert [image["split"] for image in content["images"]] == ["train"] * 3 + ["valid"] * 3
    assert report.notes == tuple(
        f"{split}/_annotations.coco.json: category 0 'teeth' heads the others and has no annotation; left aside"
        for split in ("train", "valid")
    )


def test_coco_masks_and_boxes_from_masks(tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[10:30, 5:25] = 1
    code = mask_utils.encode(mask)
    content = coco_content()
    for annotation, counts in zip(content["annotations"], (code["counts"].decode(), None), strict=False):
        annotation["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": counts}
    runs = [5 * HEIGHT + 10] + [20, HEIGHT - 20] * 19 + [20]
    content["annotations"][1]["segmentation"]["counts"] = [*runs, HEIGHT * WIDTH - sum(runs)]
    for annotation in content["annotations"][:3]:
        del annotation["bbox"]
    import_dataset(write_coco(tmp_path / "src", content), tmp_path / "out")
    assert boxes(tmp_path / "out")[:3] == [[5, 10, 20, 20], [5, 10, 20, 20], [5, 5, 10, 10]]
    assert [a["area"] for a in load_idd(tmp_path / "out")["annotations"]] == [400, 400, 50, 1000]


def test_one_file_can_be_imported_and_other_files_are_noted(tmp_path):
    src = write_coco(tmp_path / "src")
    write_image(src / "unrecorded.png")
    (src / "notes.json").write_text("[]")
    assert read_coco(src / "_annotations.coco.json").notes == [
        "_annotations.coco.json: category 0 'teeth' heads the others and has no annotation; left aside",
        "1 image file(s) have no record, such as unrecorded.png",
    ]
    assert (
        "notes.json: left aside, it is no COCO file: it has no images, annotations, categories" in read_coco(src).notes
    )


def test_an_idd_folder_imports_as_it_is(tmp_path):
    content = coco_content()
    fields = {"patient_id": "p7", "source_id": "s", "modality": "periapical", "mm_per_pixel": 0.1, "split": "test"}
    fields["mm_per_pixel_matrix"] = [[0.1, 0.0], [0.0, 0.2]]
    content["images"][0].update(fields)
    implant = {"product_line": "BLT", "axis": [[1, 2], [3, 4]], "visible_fraction": 0.5}
    implant |= {"mm_per_pixel": 0.1, "length_mm": 10.5, "diameter_mm": 4.1, "out_of_plane_deg": -3.0}
    content["annotations"][0].update(implant, implant_id=40)
    content["annotations"][1].update(implant_id=40)
    content["annotations"][2].update(implant_id=41)
    import_dataset(write_coco(tmp_path / "src", content), tmp_path / "once")
    import_dataset(tmp_path / "once", tmp_path / "twice")
    once, twice = load_idd(tmp_path / "once"), load_idd(tmp_path / "twice")
    assert once == twice
    assert fields.items() <= once["images"][0].items()
    assert implant.items() <= once["annotations"][0].items()
    assert [a.get("implant_id") for a in once["annotations"]] == [1, 1, 2, None]


def test_labelme_rectangles_polygons_and_groups(tmp_path):
    src = write_labelme(tmp_path / "src")
    # The same group number in another file is another implant.
    edit_json(src / "labels/b.json", lambda content: content["shapes"][0].update(group_id=1))
    import_dataset(src, tmp_path / "out")
    content = load_idd(tmp_path / "out")
    assert [(a["bbox"], a["implant_id"]) for a in content["annotations"]] == [
        ([10, 20, 30, 30], 1),
        ([10, 10, 20, 10], 1),
        ([0, 0, 8, 6], 2),
    ]
    assert content["annotations"][1]["segmentation"] == [[10, 10, 30, 10, 30, 20]]
    assert [category["name"] for category in content["categories"]] == ["ITI", "crest"]


def test_labelme_saves_its_files_beside_the_images(tmp_path):
    write_image(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "a.json").write_text(json.dumps(labelme_content("a.png", [])))
    (tmp_path / "images" / "Thumbs.db").write_bytes(b"of Windows")
    source = read_labelme(tmp_path)
    assert [(str(image.path), image.fault) for image in source.images] == [("images/a.png", None)]


def test_labelme_without_sizes_and_beside_other_files(tmp_path):
    write_image(tmp_path / "a.png")
    content = labelme_content("a.png", [])
    del content["imageWidth"], content["imageHeight"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "settings.json").write_text("{}")
    source = read_labelme(tmp_path)
    assert (source.images[0].size, source.images[0].fault) == (None, None)
    assert source.notes == ["settings.json: left aside, it is no labelme file"]
    assert len(read_labelme(tmp_path / "a.json").images) == 1
