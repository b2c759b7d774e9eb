"""What the config takes from the data."""

import argparse
import json
import re

import pytest
import yaml
from conftest import REPOSITORY, tiny_dataset, write_idd

from implantdet.engine.setup import setup


def arguments(root, output_dir, *opts, eval_only=False):
    options = ["OUTPUT_DIR", str(output_dir), *tiny_dataset(root), *opts]
    return argparse.Namespace(config_file=str(REPOSITORY / "configs/opg_smoke.yaml"), opts=options, eval_only=eval_only)


def test_classes_and_masks_come_from_the_data(idd_root, boxes_only_root, tmp_path):
    cfg = setup(arguments(idd_root, tmp_path))
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 5
    assert cfg.MODEL.MASK_ON is True
    assert setup(arguments(boxes_only_root, tmp_path)).MODEL.MASK_ON is False
    written = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert written["MODEL"]["MASK_ON"] is False
    assert written["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 5


@pytest.mark.parametrize(
    ("image_id", "lacking"),
    [(3, "1 of the 36 annotations of tiny_mixed3_train"), (2, "1 of the 12 annotations of tiny_mixed2_val")],
)
def test_one_missing_mask_means_no_mask_head(tmp_path, image_id, lacking):
    """Also in a validation image, where it would stop the training at the first evaluation."""
    root = write_idd(tmp_path / f"mixed{image_id}")
    content = json.loads((root / "annotations.json").read_text(encoding="utf-8"))
    del next(item for item in content["annotations"] if item["image_id"] == image_id)["segmentation"]
    (root / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    assert setup(arguments(root, tmp_path)).MODEL.MASK_ON is False
    with pytest.raises(ValueError, match=rf"MODEL\.MASK_ON is True, but {lacking}_fold0 have no 'segmentation'"):
        setup(arguments(root, tmp_path, "MODEL.MASK_ON", "True"))


def test_whole_implants_have_their_own_classes(idd_root, tmp_path):
    names = ("DATASETS.TRAIN", "('tiny_masks_train_fold1_systems',)", "DATASETS.TEST", "('tiny_masks_test_systems',)")
    assert setup(arguments(idd_root, tmp_path, *names)).MODEL.ROI_HEADS.NUM_CLASSES == 2


def test_a_written_config_can_be_used_again(idd_root, tmp_path):
    first = setup(arguments(idd_root, tmp_path))
    again = setup(argparse.Namespace(config_file=str(tmp_path / "config.yaml"), opts=[], eval_only=False))
    assert yaml.safe_load(again.dump()) == yaml.safe_load(first.dump())


@pytest.mark.parametrize("trained", [False, True])
def test_an_evaluation_leaves_the_config_of_the_training(idd_root, tmp_path, trained):
    """Beside its checkpoints; where there are none, the config is that of the last evaluation."""
    setup(arguments(idd_root, tmp_path))
    if trained:
        (tmp_path / "last_checkpoint").write_text("model_final.pth", encoding="utf-8")
    cfg = setup(arguments(idd_root, tmp_path, "DATASETS.TEST", "('tiny_masks_test',)", eval_only=True))
    assert cfg.DATASETS.TEST == ("tiny_masks_test",)
    written = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert written["DATASETS"]["TEST"] == ["tiny_masks_val_fold0" if trained else "tiny_masks_test"]


def test_masks_can_be_left_out(idd_root, tmp_path):
    assert setup(arguments(idd_root, tmp_path, "MODEL.MASK_ON", "False")).MODEL.MASK_ON is False


def test_masks_that_are_not_there_are_an_error(boxes_only_root, tmp_path):
    with pytest.raises(
        ValueError, match=re.escape("MODEL.MASK_ON is True, but 36 of the 36 annotations of tiny_boxes")
    ):
        setup(arguments(boxes_only_root, tmp_path, "MODEL.MASK_ON", "True"))


def test_a_test_set_of_other_classes_is_an_error(idd_root, tmp_path):
    with pytest.raises(ValueError, match=r"DATASETS: 'tiny_masks_test_systems' has the classes \['Bicon', 'ITI'\]"):
        setup(arguments(idd_root, tmp_path, "DATASETS.TEST", "('tiny_masks_test_systems',)"))


@pytest.mark.parametrize("key", ["TRAIN", "TEST"])
def test_an_unknown_dataset_is_an_error_that_names_the_known_ones(idd_root, tmp_path, key):
    with pytest.raises(ValueError, match=rf"DATASETS\.{key}: found 'idd_test', .* registers tiny_masks_train_fold0, "):
        setup(arguments(idd_root, tmp_path, f"DATASETS.{key}", "('idd_test',)"))


def test_no_training_set_is_an_error(idd_root, tmp_path):
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN is empty"):
        setup(arguments(idd_root, tmp_path, "DATASETS.TRAIN", "()"))


def test_keys_of_the_part_head_that_nobody_reads_are_an_error(idd_root, tmp_path):
    options = ("MODEL.PART_HEAD.LOSS", "focal", "MODEL.PART_HEAD.CLASS_WEIGHTS", "[1.0, 2.0]")
    with pytest.raises(
        ValueError, match=r"NAME is 'StandardROIHeads', which does not read .* for LOSS, CLASS_WEIGHTS\. Set"
    ):
        setup(arguments(idd_root, tmp_path, *options))
    defaults = ("MODEL.PART_HEAD.LOSS", "binary_cross_entropy", "MODEL.PART_HEAD.CLASS_WEIGHTS", "()")
    assert setup(arguments(idd_root, tmp_path, *defaults)).MODEL.ROI_HEADS.NAME == "StandardROIHeads"
    for name in ("ImplantROIHeads", "CascadeImplantROIHeads"):
        cfg = setup(arguments(idd_root, tmp_path, *options, "MODEL.ROI_HEADS.NAME", name))
        assert cfg.MODEL.PART_HEAD.LOSS == "focal"


def test_a_missing_dataset_says_how_to_get_one(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.*implantdet import"):
        setup(arguments(tmp_path / "nowhere", tmp_path))
