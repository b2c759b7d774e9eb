import copy

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_utils

from implantdet.config import add_implantdet_config
from implantdet.data.dataset_mapper import RadiographMapper
from implantdet.data.problems import DataError
from implantdet.data.register import register_idd

HEIGHT, WIDTH = 48, 64
BOXES = [[5, 8, 20, 24], [40, 30, 10, 12]]  # [x, y, w, h]


def config(**options):
    cfg = get_cfg()
    add_implantdet_config(cfg)
    plain = {"INPUT.MIN_SIZE_TRAIN": (HEIGHT,), "INPUT.MIN_SIZE_TEST": HEIGHT, "MODEL.PIXEL_MEAN": [128.0]}
    plain |= {"INPUT.NOISE_FRACTION": 0.0, "INPUT.FLIP_PROB": 0.0, "INPUT.ROT90_PROB": 0.0}
    given = {key.replace("__", "."): value for key, value in options.items()}
    cfg.merge_from_list([item for pair in (plain | given).items() for item in pair])
    return cfg


def levels(dtype=np.uint8):
    image = np.full((HEIGHT, WIDTH), 40, dtype)
    for x, y, w, h in BOXES:
        image[y : y + h, x : x + w] = 200
    return image


def polygon(box):
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def run_length(box):
    x, y, w, h = box
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    return mask_utils.encode(mask)


@pytest.fixture
def record(tmp_path):
    """A dataset dict of an image with two painted boxes."""
    Image.fromarray(levels()).save(tmp_path / "a.png")
    return {
        "file_name": str(tmp_path / "a.png"),
        "image_id": 7,
        "height": HEIGHT,
        "width": WIDTH,
        "patient_id": "p",
        "annotations": [
            {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": index, "iscrowd": 0, "implant_id": 3}
            for index, box in enumerate(BOXES)
        ],
    }


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_files_and_channels(record, tmp_path, suffix, num_channels):
    record["file_name"] = str(tmp_path / f"b.{suffix}")
    Image.fromarray(levels()).save(record["file_name"])
    before = copy.deepcopy(record)
    mapped = RadiographMapper(config(MODEL__PIXEL_MEAN=[128.0] * num_channels), True)(record)
    assert record == before
    assert (mapped["image"].shape, mapped["image"].dtype) == ((num_channels, HEIGHT, WIDTH), torch.float32)
    for channel in mapped["image"].numpy():
        np.testing.assert_allclose(channel, levels(), atol=25 if suffix == "jpg" else 0)
    assert (mapped["image_id"], mapped["patient_id"], mapped["height"], mapped["width"]) == (7, "p", HEIGHT, WIDTH)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_and_not_cut(record, tmp_path, suffix):
    deep = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    record["file_name"] = str(tmp_path / f"deep.{suffix}")
    Image.fromarray(deep).save(record["file_name"])
    image = RadiographMapper(config(), True)(record)["image"][0].numpy()
    np.testing.assert_allclose(image, deep / 257, rtol=1e-6)
    assert len(np.unique(image)) == HEIGHT * WIDTH, "8 bits would leave 256 levels"


def test_two_channels_are_an_error():
    with pytest.raises(ValueError, match=r"MODEL\.PIXEL_MEAN must have 1 or 3 values; found 2"):
        RadiographMapper(config(MODEL__PIXEL_MEAN=[1.0, 1.0]), True)


@pytest.mark.parametrize(
    ("encode", "mask_format"), [(polygon, "polygon"), (polygon, "bitmask"), (run_length, "bitmask")]
)
@pytest.mark.parametrize("seed", range(6))
def test_boxes_and_masks_follow_the_painted_boxes(record, encode, mask_format, seed):
    for annotation, box in zip(record["annotations"], BOXES, strict=True):
        annotation["segmentation"] = encode(box)
    options = {"MODEL__MASK_ON": True, "INPUT__MASK_FORMAT": mask_format, "INPUT__MIN_SIZE_TRAIN": (2 * HEIGHT,)}
    mapper = RadiographMapper(config(INPUT__FLIP_PROB=0.5, INPUT__ROT90_PROB=0.5, **options), True)
    np.random.seed(seed)
    mapped = mapper(record)
    instances, image = mapped["instances"], mapped["image"][0].numpy()
    assert instances.image_size == image.shape
    assert instances.gt_classes.tolist() == [0, 1]
    masks = instances.gt_masks.tensor if mask_format == "bitmask" else None
    painted = np.zeros_like(image)
    for index, (x0, y0, x1, y1) in enumerate(instances.gt_boxes.tensor.round().int().tolist()):
        painted[y0:y1, x0:x1] = 1
        area = (x1 - x0) * (y1 - y0)
        assert area == 4 * BOXES[index][2] * BOXES[index][3], "twice as large on every side"
        if masks is None:
            assert instances.gt_masks.area()[index] == pytest.approx(area)
        else:
            assert masks[index].sum() == masks[index][y0:y1, x0:x1].sum() == area
    # The resize blends levels across an edge of the box by a pixel at most.
    assert ((image > 120) != painted.astype(bool)).mean() < 0.02
    np.testing.assert_allclose(instances.gt_masks.get_bounding_boxes().tensor, instances.gt_boxes.tensor, atol=1e-4)


def test_masks_are_left_out_if_nobody_asks_for_them(record):
    record["annotations"][0]["segmentation"] = polygon(BOXES[0])
    assert not RadiographMapper(config(), True)(record)["instances"].has("gt_masks")


def test_masks_that_are_not_there_are_an_error(record):
    record["annotations"][0]["segmentation"] = polygon(BOXES[0])
    mapper = RadiographMapper(config(MODEL__MASK_ON=True), True)
    with pytest.raises(DataError, match=r"1 of 2 annotations have no mask; set MODEL\.MASK_ON to False"):
        mapper(record)
    record["annotations"][1]["segmentation"] = run_length(BOXES[1])
    with pytest.raises(DataError, match=r"run-length code; set INPUT\.MASK_FORMAT to 'bitmask'"):
        mapper(record)


def test_for_inference_only_the_image_is_left(record):
    mapped = RadiographMapper(config(INPUT__MIN_SIZE_TEST=24), False)(record)
    assert mapped["image"].shape == (1, 24, 32)
    assert not {"annotations", "instances"} & set(mapped)


def test_images_without_annotations_have_empty_instances(record):
    record["annotations"] = []
    instances = RadiographMapper(config(), True)(record)["instances"]
    assert (len(instances), instances.gt_boxes.tensor.shape) == (0, (0, 4))


def test_what_is_as_wide_as_panoramics_are_is_taken_for_one(tmp_path):
    """1.7 times as wide as high, where nobody says what it is."""
    mapper = RadiographMapper(config(INPUT__PANORAMIC_ZOOM=2.0), False)
    for width, told, kind, zoom in (
        (170, {}, "panoramic", 2),
        (169, {}, None, 1),
        (170, {"modality": "periapical"}, "periapical", 1),
    ):
        Image.fromarray(np.zeros((100, width), np.uint8)).save(tmp_path / "image.png")
        mapped = mapper({"file_name": str(tmp_path / "image.png"), **told})
        assert mapped.get("modality") == kind
        assert mapped["image"].shape[1] == zoom * HEIGHT


def test_detectron2s_crop_still_goes_first(record):
    cfg = config(INPUT__CROP__ENABLED=True, INPUT__CROP__TYPE="absolute", INPUT__CROP__SIZE=[24, 24])
    assert RadiographMapper(cfg, True)(record)["image"].shape == (1, 48, 48)


def test_panoramics_come_larger(record):
    """Twice as large in a test and in a training without crops, boxes too; others as they are."""
    for is_train in (False, True):
        mapper = RadiographMapper(config(INPUT__PANORAMIC_ZOOM=2.0), is_train)
        for modality, zoom in ((None, 1), ("periapical", 1), ("panoramic", 2)):
            mapped = mapper(record | {"modality": modality})
            assert mapped["image"].shape[1:] == (zoom * HEIGHT, zoom * WIDTH)
    expected = [[2 * x, 2 * y, 2 * (x + w), 2 * (y + h)] for x, y, w, h in BOXES]
    assert mapped["instances"].gt_boxes.tensor.tolist() == expected


@pytest.mark.parametrize(
    "kind, size, sides",
    [
        ("relative", [0.5, 0.5], {"periapical": (24, 24), "panoramic": (12, 12)}),
        ("relative_range", [0.75, 0.75], {"periapical": (36, 48), "panoramic": (18, 24)}),
        ("absolute", [32, 32], {"periapical": (32, 32), "panoramic": (16, 16)}),
        ("absolute_range", [24, 36], {"periapical": (24, 36), "panoramic": (12, 18)}),
    ],
)
def test_crops_of_panoramics_show_less_of_them_in_as_many_pixels(kind, size, sides):
    options = {"INPUT__CROP__ENABLED": True, "INPUT__CROP__TYPE": kind, "INPUT__CROP__SIZE": size}
    mapper = RadiographMapper(config(INPUT__PANORAMIC_ZOOM=2.0, **options), True)
    for modality, (low, high) in sides.items():
        for _ in range(20):
            image, transforms = mapper.augment(levels()[:, :HEIGHT], modality)
            crop = transforms.transforms[0]
            assert low <= crop.w <= high and low <= crop.h <= high
            assert min(image.shape[1:]) == HEIGHT


def test_the_longest_edge_of_panoramics_may_be_longer():
    sizes = {"INPUT__MAX_SIZE_TRAIN": WIDTH // 2, "INPUT__MAX_SIZE_TEST": WIDTH // 2}
    for is_train in (True, False):
        mapper = RadiographMapper(config(INPUT__PANORAMIC_ZOOM=2.0, **sizes), is_train)
        assert [mapper.augment(levels(), m)[0].shape[2] for m in ("periapical", "panoramic")] == [WIDTH // 2, WIDTH]


@pytest.mark.parametrize("zoom", [0.5, 8.5, float("nan")])
def test_a_zoom_out_of_range_is_an_error(zoom):
    with pytest.raises(ValueError, match=r"INPUT.PANORAMIC_ZOOM must be from 1 to 8; found"):
        RadiographMapper(config(INPUT__PANORAMIC_ZOOM=zoom), True)


@pytest.mark.parametrize(("encode", "seed"), [(polygon, 0), (polygon, 1), (run_length, 0), (run_length, 1)])
def test_masks_are_cropped_with_their_boxes(record, encode, seed):
    for annotation, box in zip(record["annotations"], BOXES, strict=True):
        annotation["segmentation"] = encode(box)
    crop = {"INPUT__CROP__ENABLED": True, "INPUT__CROP__TYPE": "relative", "INPUT__CROP__SIZE": [0.7, 0.7]}
    mapper = RadiographMapper(config(MODEL__MASK_ON=True, INPUT__MASK_FORMAT="bitmask", **crop), True)
    np.random.seed(seed)
    instances = mapper(record)["instances"]
    assert len(instances) > 0
    for box, mask in zip(instances.gt_boxes.tensor.round().int().tolist(), instances.gt_masks.tensor, strict=True):
        x0, y0, x1, y1 = box
        assert mask[y0:y1, x0:x1].all()
        assert mask.sum() == (x1 - x0) * (y1 - y0)


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_a_crop_may_show_nothing_of_what_has_masks(record, mask_format):
    crop = {"INPUT__CROP__ENABLED": True, "INPUT__CROP__TYPE": "relative", "INPUT__CROP__SIZE": [0.2, 0.2]}
    mapper = RadiographMapper(config(MODEL__MASK_ON=True, INPUT__MASK_FORMAT=mask_format, **crop), True)
    for annotation, box in zip(record["annotations"], BOXES, strict=True):
        annotation["segmentation"] = polygon(box)
    found = {len(mapper(record)["instances"]) for _ in range(30)}
    assert 0 in found and max(found) > 0
    assert len(mapper(record | {"annotations": []})["instances"]) == 0


@pytest.mark.parametrize(("x", "kept"), [(10, {0, 1, 2}), (20, {0, 1, 2}), (21, {1, 2}), (29, {1, 2}), (30, set())])
def test_what_a_crop_leaves_too_little_of_loses_its_annotation(x, kept):
    """Three boxes of 20 pixels at ``x`` in a frame that ends at 30: a third needs half of its box, others 1/20."""
    mapper = RadiographMapper(config(), is_train=True, supercategories=["apical", "system", ""])
    box = {"bbox": [x, 5, 20, 10], "bbox_mode": BoxMode.XYWH_ABS}
    crop = T.TransformList([T.CropTransform(0, 0, 30, HEIGHT)])
    found = mapper._left_by_crop([box | {"category_id": k} for k in range(3)], crop, (HEIGHT, 30))
    assert {annotation["category_id"] for annotation in found} == kept


def test_annotations_keep_the_number_of_their_implant(record):
    record["annotations"][0]["implant_id"] = 9
    record["annotations"].insert(1, record["annotations"][1] | {"iscrowd": 1})
    del record["annotations"][2]["implant_id"]
    instances = RadiographMapper(config(), is_train=True)(record)["instances"]
    assert instances.gt_classes.tolist() == [0, 1]
    assert instances.gt_implants.tolist() == [9, -1]


def test_nobody_asks_crowds_for_a_mask(record):
    """COCO gives theirs as run-length codes, others give none; they are left out anyway."""
    for annotation in record["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h]]
    crowd = {key: value for key, value in record["annotations"][0].items() if key != "segmentation"} | {"iscrowd": 1}
    code = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    record["annotations"] += [crowd, crowd | {"segmentation": code}]
    instances = RadiographMapper(config(MODEL__MASK_ON=True), is_train=True)(record)["instances"]
    assert len(instances.gt_masks) == len(instances) == 2


def test_keypoints_of_foreign_annotations_do_no_harm(record):
    record["annotations"][0]["keypoints"] = [10.0, 10.0, 2.0]
    flipped = RadiographMapper(config(INPUT__FLIP_PROB=1.0), is_train=True)(record)
    assert flipped["instances"].get_fields().keys() == {"gt_boxes", "gt_classes", "gt_implants"}


def test_the_thirds_are_those_of_the_training_set(tiny_cfg):
    cfg = tiny_cfg()
    mapper = RadiographMapper(cfg, is_train=True)
    assert mapper.supercategories == ("coronal", "middle", "apical", "system", "system")


def test_an_image_of_another_size_is_an_error(record):
    record["width"] += 1
    with pytest.raises(ValueError, match="Mismatched image shape"):
        RadiographMapper(config(), True)(record)


def test_a_mapper_that_is_built_before_the_dataset_is_read_knows_its_thirds(idd_root):
    register_idd(idd_root, "unread")
    mapper = RadiographMapper(config(DATASETS__TRAIN="('unread_train_fold0',)"), is_train=True)
    assert "coronal" in mapper.supercategories


@pytest.mark.parametrize(
    ("key", "value"), [("MODEL__KEYPOINT_ON", True), ("MODEL__LOAD_PROPOSALS", True), ("INPUT__RANDOM_FLIP", "none")]
)
def test_what_it_would_pass_over_is_refused(key, value):
    with pytest.raises(ValueError, match=f"{key.replace('__', '.')}: found {value!r}, expected"):
        RadiographMapper(config(**{key: value}), is_train=True)
