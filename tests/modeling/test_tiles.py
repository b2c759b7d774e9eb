import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from scipy import ndimage
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from implantdet.config import add_implantdet_config
from implantdet.modeling.tiles import TiledDetector, tile_starts
from implantdet.modeling.uniting import Uniter


@pytest.mark.parametrize(("size", "overlap"), [(416, 208), (416, 0), (100, 99), (7, 3)])
def test_tiles_cover_everything_and_share_enough(size, overlap):
    for length in [*range(1, 60), 415, 416, 417, 624, 625, 832, 1700]:
        starts = tile_starts(length, size, overlap)
        if length <= size:
            assert starts == [0]
            continue
        assert (starts[0], starts[-1]) == (0, length - size)
        steps = np.diff(starts)
        assert (steps > 0).all() and steps.max() <= size - overlap
        fewer = len(starts) - 1
        assert fewer * size - (fewer - 1) * overlap < length  # no tile too many


class Bright(nn.Module):
    """A detector that finds bright rectangles, with their level as score and category by it, cut off as they are.

    Only sharp ones, of one level, unless it is told to find ``dim`` ones too, as an image shows that was shrunk.
    """

    def __init__(self, mask_on=False, dim=False):
        super().__init__()
        self.dim = dim
        self.roi_heads = nn.Module()
        self.roi_heads.mask_on = mask_on
        self.sizes = []

    def forward(self, batched_inputs):
        outputs = []
        for given in batched_inputs:
            image = given["image"][0].numpy()
            self.sizes.append(image.shape)
            places = ndimage.find_objects(ndimage.label(image > (0.5 if self.dim else 0))[0])
            places = [place for place in places if self.dim or np.ptp(image[place]) == 0]
            boxes = [[x.start, y.start, x.stop, y.stop] for y, x in places]
            scores = torch.tensor([float(image[place].max()) for place in places])
            boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
            found = Instances(image.shape, pred_boxes=boxes, scores=scores, pred_classes=(scores > 0.5).long())
            outputs.append({"instances": found})
        return outputs


def scene(height, width, count, side, seed=0):
    """Rectangles with sides of up to ``side`` pixels that do not touch, each with a level of its own."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width), np.float32)
    levels = iter(rng.permutation(np.linspace(0.1, 1, count)))
    for level in levels:
        h, w = rng.integers(1, side + 1, 2)
        y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        if not image[max(y - 1, 0) : y + h + 1, max(x - 1, 0) : x + w + 1].any():
            image[y : y + h, x : x + w] = level
    return torch.from_numpy(image)[None]


def tiled(size=40, overlap=18, topk=300):
    return TiledDetector(Bright(), size=size, overlap=overlap, uniter=Uniter(0.3, 0.0, 0.0, 0.05, topk))


@pytest.mark.parametrize("shape", [(40, 100), (97, 40), (130, 141), (41, 41)])
@pytest.mark.parametrize("seed", range(3))
def test_what_fits_into_the_overlap_is_found_once_and_where_it_is(shape, seed):
    image = scene(*shape, count=25, side=16, seed=seed)
    (expected,) = Bright()([{"image": image}])
    (found,) = tiled()([{"image": image}])
    for output in (expected, found):
        output["rows"] = sorted(
            zip(
                output["instances"].pred_boxes.tensor.tolist(),
                output["instances"].scores.tolist(),
                output["instances"].pred_classes.tolist(),
                strict=True,
            )
        )
    assert found["rows"] == expected["rows"]
    assert found["instances"].image_size == shape
    assert len(expected["rows"]) > 5


def test_what_is_larger_than_the_overlap_is_found_in_the_whole_image():
    image = torch.zeros(1, 40, 100)
    image[:, 15:25, 15:85] = 1.0  # longer than a tile
    image[:, 30:35, 50:55] = 0.9
    detector = TiledDetector(Bright(dim=True), size=40, overlap=18, uniter=Uniter(0.3, 0.0, 0.0, 0.05, 300))
    (found,) = detector([{"image": image, "height": 80, "width": 200}])
    assert detector.model.sizes[-1] == (16, 40)
    boxes = found["instances"].pred_boxes.tensor
    torch.testing.assert_close(boxes, torch.tensor([[30.0, 30, 170, 50], [100, 60, 110, 70]]), atol=3, rtol=0)
    assert boxes[1].tolist() == [100, 60, 110, 70], "what is small comes from the tiles"


def test_no_size_falls_between_the_tiles_and_the_whole_image():
    for length in range(10, 40):
        for start in range(83 - length):
            image = torch.zeros(1, 40, 83)
            image[:, 10:14, start : start + length] = 1.0
            detector = TiledDetector(Bright(dim=True), size=40, overlap=18, uniter=Uniter(0.3, 0.0, 0.0, 0.05, 300))
            (found,) = detector([{"image": image}])
            assert len(found["instances"]) == 1, (length, start)


def test_boxes_come_in_the_size_that_is_asked_for():
    image = scene(80, 120, count=20, side=16)
    (plain,), (scaled,) = (tiled()([{"image": image, "height": 80 * k, "width": 120 * k}]) for k in (1, 3))
    assert scaled["instances"].image_size == (240, 360)
    assert scaled["instances"].pred_boxes.tensor.tolist() == (3 * plain["instances"].pred_boxes.tensor).tolist()


def test_small_images_are_given_as_they_are():
    detector = tiled()
    given = [{"image": scene(40, 33, 5, 8), "height": 80, "width": 66}, {"image": scene(12, 40, 5, 8)}]
    found = detector(given)
    assert detector.model.sizes == [(40, 33), (12, 40)]
    assert [output["instances"].image_size for output in found] == [(40, 33), (12, 40)]  # the model scales, not we


def test_small_and_large_images_come_back_in_their_order():
    images = [
        {"image": scene(*shape, 9, 9, seed)} for seed, shape in enumerate([(30, 20), (50, 60), (40, 40), (9, 41)])
    ]
    alone = [tiled()([image])[0]["instances"] for image in images]
    together = [output["instances"] for output in tiled()(images)]
    assert [found.pred_boxes.tensor.tolist() for found in together] == [
        found.pred_boxes.tensor.tolist() for found in alone
    ]
    assert min(map(len, alone)) > 0


def test_the_best_are_kept_and_nothing_is_found_in_nothing():
    image = scene(100, 100, count=20, side=10)
    (every,), (best,) = (tiled(topk=topk)([{"image": image}]) for topk in (300, 3))
    assert best["instances"].scores.tolist() == sorted(every["instances"].scores.tolist())[:-4:-1]
    (nothing,) = tiled()([{"image": torch.zeros(1, 100, 100)}])
    assert len(nothing["instances"]) == 0


def test_soft_nms_lowers_scores_once_over_all_tiles(tiny_cfg):
    """As if one call had seen the candidates of all tiles; and the heads have their own way again afterwards."""
    cfg = tiny_cfg(
        *("MODEL.ROI_HEADS.NAME", "ImplantROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
        *("MODEL.PART_HEAD.SOFT_NMS_SIGMA", 0.5, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1e-6, "MODEL.MASK_ON", False),
        *("TEST.TILE_SIZE", 64, "TEST.TILE_OVERLAP", 32),
    )
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    own = model.roi_heads.uniter
    given = {"image": torch.rand(1, 64, 96) * 255}
    with torch.no_grad():
        (found,) = TiledDetector(cfg, model)([given])
        assert model.roi_heads.uniter is own
        everything = Uniter(1.0, 0.0, 0.0, 0.0, -1)
        model.roi_heads.uniter = None
        (candidates,) = TiledDetector(model, size=64, overlap=32, uniter=everything)([given])
    expected = own([candidates["instances"]])
    assert len(expected) == cfg.TEST.DETECTIONS_PER_IMAGE
    torch.testing.assert_close(found["instances"].scores, expected.scores)
    torch.testing.assert_close(found["instances"].pred_boxes.tensor, expected.pred_boxes.tensor)


def test_settings_come_from_the_config_and_wrong_ones_are_errors():
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.TEST.TILE_SIZE, cfg.TEST.TILE_OVERLAP, cfg.TEST.DETECTIONS_PER_IMAGE = 64, 16, 7
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.4, 0.1
    cfg.MODEL.PART_HEAD.BOX_VOTING_IOU = 0.5  # of one tile
    detector = TiledDetector(cfg, Bright())
    assert (detector.size, detector.overlap, detector.uniter) == (64, 16, Uniter(0.4, 0.0, 0.0, 0.1, 7))
    cfg.MODEL.PART_HEAD.BOX_VOTING_IOU, cfg.MODEL.PART_HEAD.SOFT_NMS_SIGMA = 0.0, 0.5
    assert TiledDetector(cfg, Bright()).uniter == Uniter(0.4, 0.5, 0.0, 0.1, 7)
    for overlap in (-1, 64):
        cfg.TEST.TILE_OVERLAP = overlap
        with pytest.raises(ValueError, match=rf"TEST\.TILE_OVERLAP must be from 0 .* TEST\.TILE_SIZE; found {overlap}"):
            TiledDetector(cfg, Bright())
    cfg.TEST.TILE_OVERLAP = 16
    with pytest.raises(ValueError, match=r"set MODEL\.MASK_ON False, or TEST\.TILE_SIZE 0"):
        TiledDetector(cfg, Bright(mask_on=True))


@pytest.mark.parametrize("is_training", [True, False])
def test_the_detector_stays_in_its_mode(is_training):
    model = Bright().train(is_training)
    assert (
        TiledDetector(model, size=64, overlap=32, uniter=Uniter(0.3, 0.0, 0.0, 0.05, 10)).training
        == model.training
        == is_training
    )


def test_a_detector_that_is_wrapped_for_several_processes(tmp_path):
    model = Bright()
    model.weight = nn.Parameter(torch.zeros(()))
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        tiled = TiledDetector(
            DistributedDataParallel(model), size=64, overlap=32, uniter=Uniter(0.3, 0.0, 0.0, 0.05, 10)
        )
    finally:
        distributed.destroy_process_group()
    assert tiled.model is model
