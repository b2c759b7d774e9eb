import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances

from implantdet.data.copy_paste import CopyPaste, add_copy_paste, implants_of, paste
from implantdet.data.dataset_mapper import RadiographMapper

HEIGHT, WIDTH = 40, 50


def mapped(image, boxes=(), masks=None):
    instances = Instances(image.shape[1:])
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.arange(len(boxes))
    if masks is not None:
        instances.gt_masks = BitMasks(masks)
    return {"image": image, "instances": instances, "file_name": "target.png"}


def implant(offset_x=5, offset_y=3):
    """An implant of 6×12 pixels in an image of another size: the whole, and its upper third."""
    image = torch.full((1, 30, 30), 70.0)
    masks = torch.zeros(2, 30, 30, dtype=torch.bool)
    x, y = offset_x, offset_y
    masks[0, y : y + 12, x : x + 6] = masks[1, y : y + 4, x : x + 6] = True
    image[0][masks[0]] = 230.0
    return mapped(image, [[x, y, x + 6, y + 12], [x, y, x + 6, y + 4]], masks)


@pytest.fixture(autouse=True)
def seed():
    np.random.seed(0)


@pytest.mark.parametrize("channels", [1, 3])
def test_boxes_and_masks_lie_where_the_pixels_are(channels):
    source = implant()
    source["image"] = source["image"].repeat(channels, 1, 1)
    places = set()
    for _ in range(50):
        result = paste(mapped(torch.full((channels, HEIGHT, WIDTH), 20.0)), source, keep_masks=True)
        instances, image = result["instances"], result["image"]
        whole, upper = instances.gt_boxes.tensor.int().tolist()
        x1, y1, x2, y2 = whole
        assert (x2 - x1, y2 - y1) == (6, 12)
        assert 0 <= x1 < x2 <= WIDTH
        assert 0 <= y1 < y2 <= HEIGHT
        assert upper == [x1, y1, x2, y1 + 4]
        assert instances.gt_classes.tolist() == [0, 1]
        assert torch.equal(instances.gt_masks.get_bounding_boxes().tensor, instances.gt_boxes.tensor)
        assert (image[:, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1] == 230).all()
        # At each side of the implant 6 of 9 neighbours are implant, at a corner 4.
        side, corner = (6 * 230 + 3 * 20) / 9, (4 * 230 + 5 * 20) / 9
        for rim in (image[:, y1, x1 + 1 : x2 - 1], image[:, y2 - 1, x1 + 1 : x2 - 1]):
            torch.testing.assert_close(rim, torch.full_like(rim, side))
        for rim in (image[:, y1 + 1 : y2 - 1, x1], image[:, y1 + 1 : y2 - 1, x2 - 1]):
            torch.testing.assert_close(rim, torch.full_like(rim, side))
        torch.testing.assert_close(image[:, y1, x1], torch.full((channels,), corner))
        outside = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
        outside[y1:y2, x1:x2] = False
        assert (image[:, outside] == 20).all()
        places.add((x1, y1))
    assert len(places) > 30
    assert result["file_name"] == "target.png"


def test_what_the_mask_does_not_cover_stays():
    source = implant()
    source["instances"].gt_masks.tensor[0, 3:9, 5:8] = False  # the upper left quarter is no implant
    source["instances"].gt_masks.tensor[1] = False
    x1, y1, _, _ = (
        paste(mapped(torch.full((1, HEIGHT, WIDTH), 20.0)), source, keep_masks=False)["instances"]
        .gt_boxes.tensor[0]
        .int()
        .tolist()
    )
    np.random.seed(0)
    image = paste(mapped(torch.full((1, HEIGHT, WIDTH), 20.0)), source, keep_masks=False)["image"][0]
    assert (image[y1 : y1 + 5, x1 : x1 + 2] == 20).all()
    assert (image[y1 + 7 : y1 + 11, x1 + 1 : x1 + 5] == 230).all()
    # At the rim the levels lie between: of the 3×3 neighbours of this pixel, 6 are implant.
    assert image[y1 + 3, x1 + 3] == pytest.approx((6 * 230 + 3 * 20) / 9)


def test_no_annotation_is_covered():
    taken = [[0.0, 0.0, 30.0, HEIGHT], [31.0, 0.0, WIDTH, 20.0]]  # a window of 19×20 is free
    count = 0
    for _ in range(50):
        result = paste(mapped(torch.zeros(1, HEIGHT, WIDTH), taken), implant(), keep_masks=False)
        pasted = result["instances"].gt_boxes.tensor[2:]
        count += len(pasted) > 0
        assert (pasted[:, 0] >= 30).all()
        assert (pasted[:, 1] >= 20).all()
    assert count > 10
    assert not result["instances"].has("gt_masks")


def test_without_a_place_or_an_implant_the_target_stays():
    full = mapped(torch.zeros(1, HEIGHT, WIDTH), [[0.0, 0.0, WIDTH, HEIGHT]])
    assert paste(full, implant(), keep_masks=False) is full
    small = mapped(torch.zeros(1, 11, 50))
    assert paste(small, implant(), keep_masks=False) is small
    target, cut_off = mapped(torch.zeros(1, HEIGHT, WIDTH)), implant()
    cut_off["instances"] = cut_off["instances"][[False, False]]
    assert paste(target, cut_off, keep_masks=False) is target


@pytest.mark.parametrize(("others", "expected"), [([4, 7, -1], 8), ([-1], 0), ([], 0)])
def test_a_pasted_implant_has_a_number_of_its_own(others, expected):
    target = mapped(torch.zeros(1, HEIGHT, WIDTH), [[0.0, 0.0, 2.0, 2.0]] * len(others))
    target["instances"].gt_implants = torch.tensor(others, dtype=torch.int64)
    found = paste(target, implant(), keep_masks=False)["instances"].gt_implants
    assert found.tolist() == [*others, expected, expected]


def test_the_inputs_are_not_changed():
    target, source = mapped(torch.zeros(1, HEIGHT, WIDTH)), implant()
    boxes = source["instances"].gt_boxes.tensor.clone()
    paste(target, source, keep_masks=True)
    assert not target["image"].any()
    assert torch.equal(source["instances"].gt_boxes.tensor, boxes)


def test_implants_are_gathered_with_all_their_annotations():
    mask = {"segmentation": [[5, 5, 9, 5, 9, 9]], "bbox": [5, 5, 4, 4], "bbox_mode": BoxMode.XYWH_ABS}
    size = {"width": WIDTH, "height": HEIGHT}
    records = [
        {
            "image_id": 1,
            **size,
            "annotations": [{"implant_id": 7, **mask}, {"implant_id": 8, **mask}, {"implant_id": 7, **mask}],
        },
        {"image_id": 2, **size, "annotations": [{"implant_id": 9, **mask}, {"implant_id": 9}, {**mask}]},
    ]
    found = implants_of(records)
    assert [(implant["image_id"], len(implant["annotations"])) for implant in found] == [(1, 2), (1, 1)]


@pytest.mark.parametrize("box", [[0, 5, 4, 4], [5, 0.5, 4, 4], [WIDTH - 4, 5, 4, 4], [5, HEIGHT - 4.5, 4, 4]])
def test_implants_that_the_frame_cuts_off_are_not_copied(box):
    whole = {"implant_id": 1, "segmentation": [], "bbox": [5, 5, 4, 4], "bbox_mode": BoxMode.XYWH_ABS}
    record = {"width": WIDTH, "height": HEIGHT, "annotations": [whole, whole | {"bbox": box}]}
    assert implants_of([record]) == []
    record["annotations"][1]["implant_id"] = 2
    assert len(implants_of([record])) == 1


def test_probability_and_share_of_the_sources():
    drawn = []

    def source_mapper(record):
        drawn.append(record["name"])
        return implant()

    mapper = CopyPaste(
        lambda _: mapped(torch.zeros(1, HEIGHT, WIDTH)),
        source_mapper,
        [{"name": "common"}, {"name": "rare"}],
        prob=0.5,
        factors=np.array([1.0, 3.0]),
        keep_masks=False,
    )
    pasted = sum(len(mapper({})["instances"]) > 0 for _ in range(400))
    assert pasted == len(drawn) == pytest.approx(200, abs=40)
    assert drawn.count("rare") / len(drawn) == pytest.approx(0.75, abs=0.1)


@pytest.mark.parametrize("mask_on", [False, True])
def test_with_the_mapper_of_the_trainer(tiny_cfg, mask_on):
    cfg = tiny_cfg("INPUT.COPY_PASTE_PROB", 1.0, "MODEL.MASK_ON", mask_on, "INPUT.MASK_FORMAT", "bitmask")
    records = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    plain = RadiographMapper(cfg, is_train=True)
    mapper = add_copy_paste(cfg, plain, records)
    counts = [len(mapper(record)["instances"]) - len(record["annotations"]) for record in records * 4]
    assert 4 in counts  # an implant of this dataset has four annotations
    assert set(counts) <= {0, 4}
    pasted = mapper(records[0])["instances"]
    assert pasted.has("gt_masks") == mask_on
    off = tiny_cfg("INPUT.COPY_PASTE_PROB", 0.0)
    assert add_copy_paste(off, plain, records) is plain


def test_rare_categories_are_drawn_more_often(tiny_cfg):
    """Category 0 in every image, category 1 in one of ten: with a threshold of 0.4, its factor is (0.4 / 0.1)^½ = 2."""
    cfg = tiny_cfg("INPUT.COPY_PASTE_PROB", 1.0, "INPUT.MASK_FORMAT", "bitmask", "DATALOADER.REPEAT_THRESHOLD", 0.4)
    box = {"implant_id": 1, "segmentation": [], "bbox": [5, 5, 4, 4], "bbox_mode": BoxMode.XYWH_ABS}
    record = {"width": WIDTH, "height": HEIGHT, "annotations": [box | {"category_id": 0}]}
    rare = record | {"annotations": [box | {"category_id": 0}, box | {"category_id": 1}]}
    mapper = add_copy_paste(cfg, None, [record] * 9 + [rare])
    np.testing.assert_allclose(mapper.probabilities["None"], [1 / 11] * 9 + [2 / 11])


def test_implants_come_from_radiographs_of_the_same_modality():
    drawn = []
    sources = [{"name": k, "modality": modality} for k, modality in enumerate(["panoramic", "periapical"] * 2)]
    sources[2] = {"name": 2, "height": 500, "width": 1000}

    def mapper_of(record):
        drawn.append(record["name"])
        return implant()

    factors = np.array([1.0, 1.0, 3.0, 1.0])
    mapper = CopyPaste(
        lambda _: mapped(torch.zeros(1, HEIGHT, WIDTH)), mapper_of, sources, prob=1.0, factors=factors, keep_masks=False
    )
    for _ in range(100):
        mapper({"modality": "panoramic"})
        mapper({"height": 1000, "width": 2000})  # as its shape tells
    assert set(drawn) == {0, 2}
    assert drawn.count(2) / len(drawn) == pytest.approx(0.75, abs=0.1)
    assert len(mapper({"modality": "tomogram"})["instances"]) == 0  # nothing fits


@pytest.mark.parametrize(("kind", "share"), [("relative", 0.5), ("relative_range", 0.75)])
def test_pasted_implants_are_as_large_as_those_of_a_crop(tiny_cfg, kind, share):
    """Images of 64 pixels. A crop of 32 (on average 48) comes out with 64, so what it shows grows."""
    crop = ("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", kind, "INPUT.CROP.SIZE", [0.5, 0.5])
    cfg = tiny_cfg(*crop, "INPUT.COPY_PASTE_PROB", 1.0, "INPUT.MASK_FORMAT", "bitmask")
    mapper = add_copy_paste(cfg, None, DatasetCatalog.get(cfg.DATASETS.TRAIN[0]))
    before = sorted(np.array([a["bbox"][2:] for a in mapper.sources[0]["annotations"]]).max(axis=1))
    boxes = mapper.source_mapper(mapper.sources[0])["instances"].gt_boxes.tensor
    after = sorted((boxes[:, 2:] - boxes[:, :2]).max(dim=1).values.tolist())
    np.testing.assert_allclose(after, np.array(before) / share, rtol=0.05)


def test_crops_of_a_number_of_pixels_say_nothing_of_the_scale(tiny_cfg):
    crop = ("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [32, 32])
    cfg = tiny_cfg(*crop, "INPUT.COPY_PASTE_PROB", 1.0, "INPUT.MASK_FORMAT", "bitmask")
    with pytest.raises(ValueError, match=r"INPUT\.CROP\.TYPE is 'absolute', .* one of relative, relative_range"):
        add_copy_paste(cfg, None, DatasetCatalog.get(cfg.DATASETS.TRAIN[0]))


def test_sources_are_augmented_but_not_cropped(tiny_cfg):
    crop = ("INPUT.CROP.ENABLED", True, "INPUT.COPY_PASTE_PROB", 1.0, "INPUT.MASK_FORMAT", "bitmask")
    cfg = tiny_cfg(*crop)
    plain = RadiographMapper(cfg, is_train=True)
    source_mapper = add_copy_paste(cfg, plain, DatasetCatalog.get(cfg.DATASETS.TRAIN[0])).source_mapper
    kinds, of_sources = ([type(step) for step in each.augmentations.augs] for each in (plain, source_mapper))
    assert issubclass(kinds[0], T.RandomCrop)
    assert of_sources == kinds[1:]


def test_nothing_to_copy_is_named(tiny_cfg, boxes_only_root):
    cfg = tiny_cfg("INPUT.COPY_PASTE_PROB", 0.5, root=boxes_only_root)
    with pytest.raises(ValueError, match="no implant of the 6 training images has an 'implant_id'"):
        add_copy_paste(cfg, None, DatasetCatalog.get(cfg.DATASETS.TRAIN[0]))


def test_polygons_cannot_be_pasted(tiny_cfg):
    cfg = tiny_cfg("INPUT.COPY_PASTE_PROB", 0.5, "INPUT.MASK_FORMAT", "polygon", "MODEL.MASK_ON", True)
    with pytest.raises(ValueError, match=r"set INPUT\.MASK_FORMAT bitmask"):
        add_copy_paste(cfg, None, DatasetCatalog.get(cfg.DATASETS.TRAIN[0]))


@pytest.mark.parametrize("prob", [-0.5, 50.0])
def test_a_probability_out_of_its_range_is_an_error(tiny_cfg, prob):
    cfg = tiny_cfg("INPUT.COPY_PASTE_PROB", prob, "INPUT.MASK_FORMAT", "bitmask")
    with pytest.raises(ValueError, match=rf"INPUT\.COPY_PASTE_PROB must be from 0 to 1; found {prob}"):
        add_copy_paste(cfg, None, DatasetCatalog.get(cfg.DATASETS.TRAIN[0]))


def test_masks_that_are_not_asked_for_are_left_out():
    there = mapped(torch.zeros(1, HEIGHT, WIDTH), [[0, 0, 4, 4]], torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool))
    result = paste(there, implant(), keep_masks=False)["instances"]
    assert (len(result), result.has("gt_masks"), there["instances"].has("gt_masks")) == (3, False, True)
