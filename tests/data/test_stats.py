import matplotlib.image
import pytest

from implantdet.data.stats import dataset_stats, plot_stats, stats_rows
from implantdet.taxonomy import default_taxonomy


def dataset(boxes, categories):
    annotations = [
        {"id": index, "image_id": image_id, "category_id": category_id, "bbox": [0, 0, w, h], "area": w * h}
        for index, (image_id, category_id, w, h) in enumerate(boxes)
    ]
    return {
        "images": [{"id": image_id} for image_id in (1, 2, 3, 4)],
        "annotations": annotations,
        "categories": categories,
    }


CATEGORIES = [
    {"id": 5, "name": "ITI", "supercategory": "system"},
    {"id": 7, "name": "crown"},
    {"id": 9, "name": "never", "supercategory": ""},
]
BOXES = [(1, 5, 10, 20), (1, 5, 20, 20), (2, 5, 30, 120), (1, 7, 200, 100)]
BOXES_OF_TAXONOMY = [(1, 1, 10, 20), (1, 1, 20, 15), (2, 30, 40, 90)]


def test_counts_by_hand():
    stats = dataset_stats(dataset(BOXES, CATEGORIES))
    iti, crown, never = stats["classes"]
    assert (iti["boxes"], iti["images"], iti["share"], iti["supercategory"]) == (3, 2, 0.75, "system")
    assert (iti["width"]["median"], iti["height"]["median"], iti["aspect"]["median"]) == (20, 20, 2)
    assert (crown["aspect"]["min"], crown["aspect"]["max"]) == (0.5, 0.5)
    assert (never["boxes"], never["share"], never["width"]) == (0, 0, {})
    assert stats["imbalance"] == 3
    assert stats["classes_without_boxes"] == ["never"]
    assert (stats["images"], stats["boxes"], stats["masks"]) == (4, 4, 0)
    per_image = stats["boxes_per_image"]
    assert (per_image["mean"], per_image["none"], per_image["min"], per_image["max"]) == (1, 2, 0, 3)
    # Areas 200 and 400 are below 32², 3600 is below 96², 20000 is above.
    assert stats["sizes"] == {"small": 2, "medium": 1, "large": 1}


def test_sizes_are_those_of_masks():
    """As COCO's AP by size has it; the mask of a tilted implant is much smaller than its box."""
    content = dataset(BOXES, CATEGORIES)
    content["annotations"][3]["area"] = 9000
    assert dataset_stats(content)["sizes"] == {"small": 2, "medium": 2, "large": 0}


def test_rows_for_the_screen():
    assert stats_rows(dataset_stats(dataset(BOXES, CATEGORIES)))[1:] == [
        ["ITI", "3", "75.0%", "2", "20", "20", "2.00"],
        ["crown", "1", "25.0%", "1", "200", "100", "0.50"],
        ["never", "0", "0.0%", "0", "–", "–", "–"],
    ]


@pytest.mark.parametrize(
    ("boxes", "categories"),
    [([], CATEGORIES), (BOXES_OF_TAXONOMY, default_taxonomy().coco_categories())],
    ids=["empty", "taxonomy"],
)
def test_picture(boxes, categories, tmp_path):
    content = dataset(boxes, categories)
    stats = dataset_stats(content)
    plot_stats(content, stats, tmp_path / "stats.png")
    assert [path.name for path in tmp_path.iterdir()] == ["stats.png"]
    height, width, _ = matplotlib.image.imread(tmp_path / "stats.png").shape
    assert width == 1440
    assert height == pytest.approx(120 * (0.28 * len(categories) + 1.2 + 4.2), abs=2), "a class more is a row more"
