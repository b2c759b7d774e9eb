"""What the config takes from the data."""

import argparse
import json
import re
import shutil

import pytest
import torch
import yaml
from conftest import REPOSITORY, tiny_dataset, write_idd
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from implantdet.config import add_implantdet_config
from implantdet.data.problems import DataError
from implantdet.data.unlabelled import unlabelled_dicts
from implantdet.engine.setup import check_levels, setup, warn_of_contrasts


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


def test_a_device_that_is_not_there_is_an_error(idd_root, tmp_path, monkeypatch):
    """A training's config.yaml holds that of its machine."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE is 'cuda:1', and PyTorch finds no GPU here; give .* cpu"):
        setup(arguments(idd_root, tmp_path, "MODEL.DEVICE", "cuda:1"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE is 'cpu', .* give MODEL\.DEVICE cuda, or hide the GPUs"):
        setup(arguments(idd_root, tmp_path, "MODEL.DEVICE", "cpu"))


@pytest.mark.parametrize(
    ("rpn", "heads", "unread"),
    [("p2", "p2", "p3, p4, p5"), ("p2 p3 p6", "p2", "p4"), ("p2 p3 p4 p6", "p3", ""), ("p4 p5", "p2 p3", "")],
)
def test_levels_that_nothing_reads_are_an_error_in_several_processes(monkeypatch, rpn, heads, unread):
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_vit_sfp_backbone"
    cfg.MODEL.RPN.IN_FEATURES, cfg.MODEL.ROI_HEADS.IN_FEATURES = rpn.split(), heads.split()
    check_levels(cfg)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    if not unread:
        return check_levels(cfg)
    with pytest.raises(ValueError, match=rf"nothing reads {unread}, and training in several"):
        check_levels(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    return check_levels(cfg)


def test_a_set_without_images_is_an_error(tmp_path):
    root = write_idd(tmp_path / "empty")
    folds = json.loads((root / "folds.json").read_text(encoding="utf-8"))
    folds["folds"][0] += folds["test"]
    (root / "folds.json").write_text(json.dumps(folds | {"test": []}), encoding="utf-8")
    name = "tiny_empty_test"
    with pytest.raises(ValueError, match=rf"DATASETS\.TEST: '{name}' has no image; expected another set"):
        setup(arguments(root, tmp_path, "DATASETS.TEST", f"('{name}',)"))


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


def test_a_fold_that_is_changed_in_one_key_alone_is_told(idd_root, tmp_path, caplog):
    options = ("DATASETS.TRAIN", "('tiny_masks_train_fold1',)")
    setup(arguments(idd_root, tmp_path, *options, "DATASETS.TEST", "('tiny_masks_val_fold1',)"))
    assert "in DATASETS.TRAIN" not in caplog.text
    setup(arguments(idd_root, tmp_path, *options))  # whose test set is val_fold0
    assert "DATASETS.TEST: 2 of the 2 images of 'tiny_masks_val_fold0' are in DATASETS.TRAIN, too" in caplog.text


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


def folder_arguments(folder, root, output_dir, *opts):
    """Pre-training on a folder; DATASETS.TRAIN stays as the config has it, the name of a dataset that is not there."""
    options = ["DATASETS.IMAGE_FOLDER", str(folder), "DATASETS.TEST", "()", "OUTPUT_DIR", str(output_dir)]
    options += ["DATASETS.ROOT", str(root), "DATASETS.NAME", f"beside_{root.name}", *opts]
    return argparse.Namespace(
        config_file=str(REPOSITORY / "configs/pretrain_mde_smoke.yaml"), opts=options, eval_only=False
    )


def test_a_folder_of_images_needs_no_dataset_and_says_that_nothing_is_held_out(idd_root, tmp_path):
    cfg = setup(folder_arguments(idd_root / "images", tmp_path / "nowhere", tmp_path))
    assert len(unlabelled_dicts(cfg)) == 10
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert log.count("WARNING: DATASETS.IMAGE_FOLDER") == 1
    assert "no dataset beside_nowhere_test is registered" in log
    assert f"DATASETS.ROOT (found '{tmp_path}/nowhere')" in log


def test_test_images_of_the_dataset_are_held_out_of_a_folder(idd_root, tmp_path):
    cfg = setup(folder_arguments(shutil.copytree(idd_root / "images", tmp_path / "copies"), idd_root, tmp_path))
    names = {record["file_name"].rsplit("/", 1)[-1] for record in unlabelled_dicts(cfg)}
    assert names == {f"{number:03d}.png" for number in range(1, 11)} - {"001.png", "006.png"}
    assert "WARNING: DATASETS" not in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_half_a_dataset_beside_a_folder_is_an_error(idd_root, tmp_path):
    """Folds without annotations hold nobody out."""
    (tmp_path / "half").mkdir()
    shutil.copy(idd_root / "folds.json", tmp_path / "half")
    with pytest.raises(DataError, match=r"half': it has no annotations\.json"):
        setup(folder_arguments(idd_root / "images", tmp_path / "half", tmp_path))


def test_a_folder_of_images_does_not_stand_for_test_sets_or_for_labels(idd_root, tmp_path):
    arguments_of_folder = folder_arguments(idd_root / "images", idd_root, tmp_path, "DATASETS.TEST", "('idd_test',)")
    with pytest.raises(ValueError, match=r"DATASETS\.TEST: found 'idd_test', expected a registered dataset"):
        setup(arguments_of_folder)
    detector = ("DATASETS.IMAGE_FOLDER", str(idd_root / "images"), "DATASETS.TRAIN", "('idd_train_fold0',)")
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN: found 'idd_train_fold0', expected a registered dataset"):
        setup(arguments(idd_root, tmp_path, *detector))


def test_a_dataset_that_detectron2_knows_needs_none_of_ours(idd_root, tmp_path):
    """It is registered elsewhere: by Detectron2 itself, or by the project that imports this one."""
    record = {"file_name": "a.png", "image_id": 0, "height": 9, "width": 9, "annotations": []}
    DatasetCatalog.register("theirs", lambda: [record])
    MetadataCatalog.get("theirs").set(thing_classes=["caries", "crown"])
    options = ("DATASETS.TRAIN", "('theirs',)", "DATASETS.TEST", "()")
    try:
        assert setup(arguments(tmp_path / "nowhere", tmp_path, *options)).MODEL.ROI_HEADS.NUM_CLASSES == 2
        setup(arguments(idd_root, tmp_path))  # registers ours
        with pytest.raises(DataError, match="nowhere"):  # which stay those of their folder
            setup(arguments(tmp_path / "nowhere", tmp_path, *tiny_dataset(idd_root)[2:]))
    finally:
        DatasetCatalog.remove("theirs")
        MetadataCatalog.remove("theirs")


def test_a_missing_dataset_says_how_to_get_one(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.*implantdet import"):
        setup(arguments(tmp_path / "nowhere", tmp_path))


def test_a_folder_without_a_dataset_says_what_to_do_about_the_test_set(idd_root, tmp_path):
    options = folder_arguments(idd_root / "images", tmp_path / "nowhere", tmp_path, "DATASETS.TEST", "('none_test',)")
    with pytest.raises(
        DataError, match=r"DATASETS\.TEST \('none_test',\): .*no such folder.* give DATASETS\.TEST '\(\)'"
    ):
        setup(options)


@pytest.mark.parametrize(
    ("mean", "std"),
    [("[1.0]", "[1.0, 1.0, 1.0]"), ("[1.0, 1.0]", "[1.0, 1.0]"), ("[1.0]", "[0.0]"), ("[]", "[]"), ("[1.0]", "['a']")],
)
def test_pixels_that_cannot_be_normalised_are_an_error(idd_root, tmp_path, mean, std):
    options = ("MODEL.PIXEL_MEAN", mean, "MODEL.PIXEL_STD", std)
    with pytest.raises(
        ValueError, match=r"found MODEL\.PIXEL_MEAN \[.*expected as many numbers in both, 1 \(grey\) or 3"
    ):
        setup(arguments(idd_root, tmp_path, *options))


@pytest.mark.parametrize(
    ("name", "mean", "std", "is_warned"),
    [
        ("vit_base_patch16_224.augreg_in1k", 127.5, 127.5, False),
        ("vit_base_patch16_224.augreg_in1k", 114.5, 57.6, True),
        ("vit_base_patch16_224", 114.5, 57.6, True),  # its first tag is of the same kind
        ("vit_base_patch16_224.mae", 114.5, 57.6, False),
        ("vit_base_patch16_224.mae", 114.5, 127.5, True),
        ("vit_base_patch16_224.of_nobody", 114.5, 57.6, False),  # told where it is read
    ],
)
def test_weights_of_other_contrasts_are_a_warning(caplog, name, mean, std, is_warned):
    cfg = get_cfg()
    cfg.MODEL.WEIGHTS, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = f"timm://{name}", [mean], [std]
    warn_of_contrasts(cfg)
    assert ("they see other contrasts" in caplog.text) == is_warned


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*supervised*")), ids=lambda path: path.name)
def test_supervised_configs_normalise_as_their_weights_do(caplog, path):
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.merge_from_file(str(path))
    assert cfg.MODEL.WEIGHTS.startswith("timm://")
    warn_of_contrasts(cfg)
    assert not caplog.records


def test_what_was_asked_of_detectron2_stays():
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    add_implantdet_config(cfg)
    assert cfg.MODEL.MASK_ON is True
    cfg = get_cfg()
    add_implantdet_config(cfg)
    assert cfg.MODEL.MASK_ON is None
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "mps"
    add_implantdet_config(cfg)
    assert cfg.MODEL.DEVICE == "mps"
