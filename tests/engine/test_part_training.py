"""Short trainings of the part detector with every option that the configs name, through the trainer."""

import json
from pathlib import Path

import pytest
import torch

from implantdet.engine.trainer import Trainer

PARTS = (
    *("MODEL.MASK_ON", "False", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"),
    *("SOLVER.MAX_EPOCHS", "2.0", "SOLVER.EVAL_EPOCHS", "2.0", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
)
ALL = (
    *("MODEL.PART_HEAD.LOSS", "focal", "MODEL.PART_HEAD.CLASS_WEIGHTING", "effective_number"),
    *("MODEL.PART_HEAD.SOFT_NMS_SIGMA", "0.5", "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "ciou"),
    *("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", "0.5"),
    *("INPUT.COPY_PASTE_PROB", "1.0", "INPUT.MASK_FORMAT", "bitmask"),
    *("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.FLIP", "True", "TEST.AUG.ROT90", "True"),
    *("SOLVER.EMA_DECAY", "0.9"),
)
CASCADE = ("MODEL.ROI_HEADS.NAME", "CascadeImplantROIHeads")


def trained(cfg):
    """OUTPUT_DIR after a training; every line of its metrics."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    out = Path(cfg.OUTPUT_DIR)
    lines = (out / "metrics.json").read_text(encoding="utf-8").splitlines()
    return out, moved, {key: value for line in lines for key, value in json.loads(line).items()}


@pytest.mark.parametrize(
    "options", [(), ALL, CASCADE, (*CASCADE, *ALL)], ids=["plain", "all", "cascade", "cascade all"]
)
def test_parts_and_systems_train_together(tiny_cfg, options):
    cfg = tiny_cfg("MODEL.ROI_HEADS.NAME", "ImplantROIHeads", *PARTS, *options)
    out, moved, metrics = trained(cfg)
    predictors = [""] if "Cascade" not in cfg.MODEL.ROI_HEADS.NAME else [".0", ".1", ".2"]
    for stage in predictors:
        for layer in ("cls_score", "bbox_pred"):
            assert f"roi_heads.box_predictor{stage}.{layer}.weight" in moved
    assert metrics["total_loss"] < 100  # finite, too
    recalls = {name for name in metrics if name.endswith("label_recall")}  # that of the multi-label predictor
    assert len(recalls) == len(predictors)
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert found["num_detections"] > 0
    assert set(found["bbox"]["per_class"]) == {
        *("coronal.level.bone", "middle.thread.v_shaped", "apical.apex.dome", "Bicon", "ITI")
    }
    assert Trainer.evaluate(cfg, resume=True)["bbox"]["AR100"] >= 0  # in many versions, where that is asked for


def test_whole_implants_train_alone(tiny_cfg):
    systems = (
        "DATASETS.TRAIN",
        "('tiny_masks_train_fold0_systems',)",
        "DATASETS.TEST",
        "('tiny_masks_val_fold0_systems',)",
    )
    out, moved, _ = trained(tiny_cfg("MODEL.ROI_HEADS.NAME", "ImplantROIHeads", *PARTS, *systems))
    assert "roi_heads.box_predictor.cls_score.weight" in moved
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert set(found["bbox"]["per_class"]) == {"Bicon", "ITI"}
    assert "implants" not in found
