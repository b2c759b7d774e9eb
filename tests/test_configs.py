"""Every config loads, names only keys that exist, and builds its model."""

import re

import pytest
import torch
from conftest import REPOSITORY
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from implantdet.config import add_implantdet_config
from implantdet.engine.optimizer import build_adamw
from implantdet.engine.schedule import with_lengths
from implantdet.engine.setup import check_part_head

CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda path: path.stem)
def cfg(request):
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.merge_from_file(str(request.param))
    return cfg


def test_there_are_configs():
    assert {"Base-ViT-SFP.yaml", "opg_vit_tiny.yaml", "opg_smoke.yaml"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize("kind", ["idd", "idd_systems"])
def test_inits_differ_in_nothing_but_the_init(kind):
    loaded = {}
    for init in ("random", "supervised", "mae", "mde"):
        loaded[init] = get_cfg()
        add_implantdet_config(loaded[init])
        loaded[init].merge_from_file(str(REPOSITORY / f"configs/{kind}_{init}.yaml"))
    assert len({cfg.MODEL.WEIGHTS for cfg in loaded.values()}) == 4
    suffix = kind.removeprefix("idd")
    for cfg in loaded.values():
        assert ((f"idd_train_fold0{suffix}",), (f"idd_val_fold0{suffix}",)) == (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
    assert loaded["random"].MODEL.ROI_HEADS.NAME == "ImplantROIHeads"
    for cfg in loaded.values():
        cfg.MODEL.WEIGHTS, cfg.SOLVER.LAYER_DECAY, cfg.OUTPUT_DIR = "", 1.0, ""
        cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = [1.0]  # weights see grey levels as they were trained to
        assert cfg == loaded["random"]


def test_it_builds_its_model_optimizer_and_lengths(cfg):
    with torch.device("meta"):  # shapes without memory or initialisation
        model = build_model(cfg.merge_from_list(["MODEL.DEVICE", "meta"]) or cfg)
    assert len(build_adamw(cfg, model).param_groups) > 1
    lengths = with_lengths(cfg, num_images=1000)
    assert 0 <= lengths.SOLVER.WARMUP_ITERS < lengths.SOLVER.MAX_ITER


def test_it_is_for_grey_images_and_names_a_dataset(cfg):
    assert len(cfg.MODEL.PIXEL_MEAN) == len(cfg.MODEL.PIXEL_STD) == 1
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        assert name.startswith(f"{cfg.DATASETS.NAME}_")
    assert cfg.SEED >= 0  # reproducible unless somebody asks for something else


@pytest.mark.parametrize("name", ["idd_random", "idd_tiny"])
def test_the_options_of_the_readme_can_be_given(name):
    """Row by row, to the configs that the README trains."""
    rows = re.findall(r"^\| [^`].* \| `([A-Z].*)` \|$", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.M)
    assert len(rows) >= 6
    for row in rows:
        cfg = get_cfg()
        add_implantdet_config(cfg)
        cfg.merge_from_file(str(REPOSITORY / f"configs/{name}.yaml"))
        assert (cfg.INPUT.MASK_FORMAT, len(cfg.TEST.AUG.MIN_SIZES), cfg.TEST.AUG.ROT90) == ("bitmask", 3, True)
        assert cfg.INPUT.MIN_SIZE_TEST in cfg.TEST.AUG.MIN_SIZES
        before = cfg.clone()
        cfg.merge_from_list(row.replace("`, `", " ").split())
        check_part_head(cfg)
        set_already = name == "idd_tiny" and re.search("CascadeImplantROIHeads|RepeatFactorTrainingSampler", row)
        assert cfg != before or set_already, f"{row} is no option: it is set already"


def test_paper_sizes():
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.merge_from_file(str(REPOSITORY / "configs/idd_random.yaml"))
    assert cfg.MODEL.VIT.NAME == "vit_base_patch16_224"
    assert (cfg.MODEL.VIT.IMG_SIZE, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST) == (416, (416,), 416)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WARMUP_EPOCHS) == (1e-4, 0.05, 10)
    assert cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupCosineLR"


def pretraining_config(name):
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.merge_from_file(str(REPOSITORY / f"configs/{name}.yaml"))
    return cfg


def test_the_papers_pretraining():
    """Sections 3.2 and 4.3."""
    cfg = pretraining_config("pretrain_mde_paper")
    assert (cfg.MODEL.VIT.NAME, cfg.MODEL.VIT.IMG_SIZE) == ("vit_base_patch16_224", 416)
    mim = cfg.MODEL.MIM
    assert (mim.TARGET, mim.MASK_RATIO, mim.DECODER_DEPTH, mim.PIXEL_WEIGHT) == ("patch_embed", 0.25, 0, 0)
    assert (mim.NORM_TARGET, mim.LOSS, cfg.INPUT.MIN_CROP_AREA) == (False, "l2", 1)
    assert pytest.approx(1.5e-4) == cfg.SOLVER.BASE_LR * 256 / cfg.SOLVER.IMS_PER_BATCH
    assert (cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.BETAS, cfg.SOLVER.WARMUP_EPOCHS) == (0.05, [0.9, 0.95], 10)
    assert cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupCosineLR"


def test_the_baseline_is_mae_as_published():
    """arXiv:2111.06377, its decoder of ViT-B and section 4.2."""
    mim = pretraining_config("pretrain_mae").MODEL.MIM
    assert (mim.TARGET, mim.NORM_TARGET, mim.LOSS, mim.PIXEL_WEIGHT) == ("pixel", True, "l2", 0)
    assert (mim.MASK_RATIO, mim.MASK_BLOCK) == (0.75, 1)
    assert (mim.DECODER_DEPTH, mim.DECODER_DIM, mim.DECODER_HEADS) == (8, 512, 16)


@pytest.mark.parametrize("init", ["mae", "mde"])
def test_a_detector_starts_from_its_pretraining(init):
    before, after = pretraining_config(f"pretrain_{init}"), pretraining_config(f"idd_{init}")
    assert f"{before.OUTPUT_DIR}/model_final.pth" == after.MODEL.WEIGHTS
    assert (before.MODEL.VIT.NAME, before.MODEL.VIT.IMG_SIZE) == (after.MODEL.VIT.NAME, after.MODEL.VIT.IMG_SIZE)
    assert (before.MODEL.PIXEL_MEAN, before.MODEL.PIXEL_STD) == (after.MODEL.PIXEL_MEAN, after.MODEL.PIXEL_STD)


def test_the_teacher_of_mde_has_a_quarter_of_the_encoders_blocks():
    cfg = pretraining_config("pretrain_mde")
    with torch.device("meta"):
        model = build_model(cfg.merge_from_list(["MODEL.DEVICE", "meta"]) or cfg)
    assert (len(model.target.teacher.blocks), len(model.encoder.blocks)) == (3, 12)


def test_the_teacher_of_the_demo_leaves_its_random_start():
    cfg = with_lengths(pretraining_config("demo_pretrain"), num_images=3 * 240 // 5)  # three of the phantom's fifths
    assert cfg.MODEL.MIM.EMA_DECAY**cfg.SOLVER.MAX_ITER < 0.5
