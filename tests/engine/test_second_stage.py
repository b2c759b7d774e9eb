"""Trainings that end with an assembler, and those that do not."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import write_idd
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from torch import nn, tensor

from implantdet.assembly.assembler import PartAssembler
from implantdet.engine.second_stage import ASSEMBLER, Predictions, SecondStage, fit_assembler, load_assembler
from implantdet.engine.trainer import Trainer

SHORT = ("SOLVER.MAX_EPOCHS", "0.1", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.MASK_ON", "False")


@pytest.fixture(scope="module")
def implants_root(tmp_path_factory):
    """Forty images: the training set of fold 0 has 36 implants, its validation set and the test set twelve each."""
    return write_idd(tmp_path_factory.mktemp("idd") / "implants", num_images=40, masks=False)


@pytest.fixture
def cfg(tiny_cfg, implants_root):
    return tiny_cfg(*SHORT, root=implants_root)


def train(cfg, interrupt=False, resume=False):
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    if interrupt:

        def run_step():
            raise KeyboardInterrupt

        trainer.run_step = run_step
    trainer.train()


def results(folder):
    return json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))


def test_every_process_calibrates_with_the_predictions_of_all(monkeypatch):
    def found(k):
        return Instances((9, 9), pred_boxes=Boxes(tensor([[0.0, 0.0, k, k]])), scores=tensor([0.5]), pred_masks=[None])

    collectors = [Predictions(), Predictions()]
    for k in range(1, 6):
        instances = found(k)
        instances.pred_classes = tensor([k])
        collectors[k % 2].process([{"image_id": k}], [{"instances": instances}])
    gathered = [list(collector.instances.items()) for collector in collectors]
    monkeypatch.setattr(comm, "all_gather", lambda mine: gathered)
    for collector in collectors:
        collector.evaluate()
        assert {image: each.pred_classes.item() for image, each in collector.instances.items()} == {
            k: k for k in range(1, 6)
        }
    assert not collectors[0].instances[1].has("pred_masks")  # they are large, and nobody needs them


def test_a_training_ends_with_implants(cfg, tmp_path):
    train(cfg)
    out = Path(cfg.OUTPUT_DIR)
    assert "implants" not in results(out)  # of the validation set, as during the training
    report = results(out / "tiny_implants_test")
    assert report["dataset"] == "tiny_implants_test"
    assert report["implants"]["num_implants"] == 12
    assert report["implants"]["stage1"]["fps"] > report["implants"]["stage2"]["fps"] > 0
    assert (out / "tiny_implants_test/implants.json").is_file()

    # Evaluated anew, by the file beside the checkpoint, it finds the same.
    again = cfg.clone()
    again.defrost()
    again.merge_from_list(["MODEL.WEIGHTS", str(out / "model_final.pth"), "OUTPUT_DIR", str(tmp_path / "again")])
    again.DATASETS.TEST = ("tiny_implants_test",)
    flat = Trainer.evaluate(again)
    assert flat["implants"]["stage2_AP"] == pytest.approx(report["implants"]["stage2"]["by_system"]["AP"], nan_ok=True)
    assert (tmp_path / "again/implants.json").read_bytes() == (out / "tiny_implants_test/implants.json").read_bytes()

    kept = {name: (out / name).read_bytes() for name in ("model_final.pth", ASSEMBLER)}
    (out / ASSEMBLER).unlink()
    with pytest.raises(ValueError, match=r"assembler\.json: no such file; .*train_net\.py --resume"):
        Trainer.evaluate(again)
    train(cfg, resume=True)  # as the message says
    assert {name: (out / name).read_bytes() for name in kept} == kept


@pytest.fixture
def asked(monkeypatch):
    """Where a calibration asks the model anew."""
    collectors = []

    def ask(model, loader, collector):
        collectors.append(collector)
        return inference_on_dataset(model, loader, collector)

    monkeypatch.setattr("implantdet.engine.second_stage.inference_on_dataset", ask)
    return collectors


def test_what_the_evaluation_at_the_end_did_not_look_at_is_asked_for(tiny_cfg, implants_root, asked):
    versions = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.FLIP", False)
    train(tiny_cfg(*SHORT, *versions, root=implants_root))
    assert len(asked) == 1


def test_the_evaluation_at_the_end_of_a_training_serves_the_calibration_too(cfg, asked):
    trainer = Trainer(cfg)
    trainer.resume_or_load(False)
    trainer.train()
    assert not asked
    path = Path(cfg.OUTPUT_DIR) / ASSEMBLER
    learned = path.read_text(encoding="utf-8")
    hook = SecondStage(cfg, trainer.checkpointer.model)
    hook.trainer = trainer
    hook.before_train()
    hook.after_train()
    assert len(asked) == 1
    assert path.read_text(encoding="utf-8") == learned


def test_a_training_without_evaluation_gets_its_assembler_afterwards(cfg):
    without = cfg.clone()
    without.defrost()
    without.DATASETS.TEST = ()
    train(without)
    weights = Path(cfg.OUTPUT_DIR) / "model_final.pth"
    with pytest.raises(ValueError, match=r"--resume. with .* and a validation set in DATASETS\.TEST, writes it"):
        load_assembler(cfg, str(weights))
    train(cfg, resume=True)
    assert load_assembler(cfg, str(weights)) is not None


def test_a_finished_training_keeps_its_files_when_a_new_calibration_fails(cfg, tiny_cfg, implants_root, monkeypatch):
    train(cfg)
    out = Path(cfg.OUTPUT_DIR)
    kept = {name: (out / name).read_bytes() for name in (ASSEMBLER, "results.json")}
    (out / "results.json").write_bytes(kept["results.json"] + b" ")  # an evaluation would write it anew
    wrong = cfg.clone()
    wrong.defrost()
    wrong.ASSEMBLY.METHOD = "exat"
    with pytest.raises(ValueError, match=r"ASSEMBLY\.METHOD: found 'exat'"):
        train(wrong, resume=True)
    assert (out / "results.json").read_bytes() == kept["results.json"] + b" "
    assert (out / ASSEMBLER).read_bytes() == kept[ASSEMBLER]

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(PartAssembler, "calibrate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(cfg, resume=True)
    assert (out / ASSEMBLER).read_bytes() == kept[ASSEMBLER]
    with pytest.raises(KeyboardInterrupt):
        train(cfg)  # other weights, which it does not fit
    assert not (out / ASSEMBLER).exists()


def test_an_interrupted_training_leaves_no_assembler(cfg):
    with pytest.raises(KeyboardInterrupt):
        train(cfg, interrupt=True)
    assert not (Path(cfg.OUTPUT_DIR) / ASSEMBLER).exists()


class Oracle(nn.Module):
    """Finds all thirds and nothing else."""

    def forward(self, inputs):
        return [{"instances": self.find(record["image_id"])} for record in inputs]

    def find(self, image_id):
        record = next(record for record in self.records if record["image_id"] == image_id)
        chosen = [item for item in record["annotations"] if item["category_id"] < 3]
        boxes = [BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS) for item in chosen]
        return Instances(
            (record["height"], record["width"]),
            pred_boxes=Boxes(tensor(boxes)),
            scores=tensor([0.9] * len(boxes)),
            pred_classes=tensor([item["category_id"] for item in chosen]),
        )


def test_the_model_that_is_given_is_calibrated_and_reported(cfg):
    """The hook alone, with a model of its own: validation teaches that no third is missed, and every whole implant."""
    oracle = Oracle()
    oracle.records = [r for part in ("val_fold0", "test") for r in DatasetCatalog.get(f"tiny_implants_{part}")]
    hook = SecondStage(cfg, oracle)
    hook.trainer = SimpleNamespace(
        iter=1,
        start_iter=0,
        max_iter=1,
        build_test_loader=Trainer.build_test_loader,
        test_implants=Trainer.test_implants,
    )
    hook.before_train()
    hook.after_train()
    state = load_assembler(cfg, str(Path(cfg.OUTPUT_DIR) / "model_final.pth")).state_
    assert state.miss_rates.tolist() == [0.01, 0.01, 0.01, 0.5]  # the limits of the rates
    implants = results(Path(cfg.OUTPUT_DIR) / "tiny_implants_test")["implants"]
    assert implants["grouping"] == {"exact": 1, "num_implants": 12}
    assert implants["stage2"]["any_system"]["AP50"] == pytest.approx(100)


def test_without_a_test_set_of_that_name_no_implants_are_reported(cfg, caplog):
    """As with a dataset that another project has registered."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.NAME = "theirs"
    hook = SecondStage(cfg, Oracle())
    hook.before_train()
    hook._report()
    assert "theirs_test is empty, not registered or of other classes" in caplog.text
    caplog.clear()
    DatasetCatalog.register("theirs_test", lambda: [{"annotations": []}])
    MetadataCatalog.get("theirs_test").thing_classes = ["other"]
    try:
        hook._report()
    finally:
        DatasetCatalog.remove("theirs_test")
    assert "theirs_test is empty, not registered or of other classes" in caplog.text


@pytest.mark.parametrize("lacking", [0, 1])
def test_boxes_do_not_stand_for_masks_that_the_test_set_lacks(cfg, monkeypatch, lacking):
    for name in (*cfg.DATASETS.TRAIN, "tiny_implants_test"):
        DatasetCatalog.get(name)  # and with it the classes
    records = [{"annotations": [{"segmentation": []}, {} if lacking else {"segmentation": []}]}]
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: records)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.MASK_ON = True
    reported = []
    hook = SecondStage(cfg, Oracle())
    hook.trainer = SimpleNamespace(test_implants=lambda cfg, *_: reported.append(cfg))
    hook._assembler = object()
    hook._report()
    assert [found.MODEL.MASK_ON for found in reported] == [not lacking]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ["calibrated on tiny_implants_val_fold0 (DATASETS.TEST in "]),
        (("DATASETS.TEST", "('tiny_implants_test',)"), []),
        (
            ("DATASETS.TEST", "('tiny_implants_test',)", "TEST.AUG.ENABLED", True),
            ["TEST.AUG.ENABLED is True, but the assembler was calibrated with False ("],
        ),
        (
            ("DATASETS.TEST", "('tiny_implants_test',)", "TEST.TILE_SIZE", 48),
            ["TEST.TILE_SIZE is 48, but the assembler was calibrated with 0 ("],
        ),
        (
            (
                *("DATASETS.TEST", "('tiny_implants_test',)", "MODEL.PART_HEAD.SOFT_NMS_SIGMA", 0.5),
                *("INPUT.MIN_SIZE_TEST", 96, "TEST.TILE_OVERLAP", 32, "TEST.AUG.FLIP", False),  # tiles and AUG are off
            ),
            [
                "MODEL.PART_HEAD.SOFT_NMS_SIGMA is 0.5, but the assembler was calibrated with 0.0 (",
                "INPUT.MIN_SIZE_TEST is 96, but the assembler was calibrated with 64 (",
            ],
        ),
        (
            ("DATASETS.TEST", "('tiny_implants_test',)", "INPUT.PANORAMIC_ZOOM", 2.0),
            ["INPUT.PANORAMIC_ZOOM is 2.0, but the assembler was calibrated with 1.0 ("],
        ),
        (("DATASETS.TEST", "('tiny_implants_test',)", "ASSEMBLY.MERGE_OVERLAP", 0.5), []),  # nothing reads it
        (
            (
                *("DATASETS.TEST", "('tiny_implants_test',)", "ASSEMBLY.METHOD", "kmeans_paper"),
                *("ASSEMBLY.COVERAGE", 0.8, "ASSEMBLY.MERGE_DISTANCE", 0.5, "ASSEMBLY.MERGE_OVERLAP", 0.5),
            ),
            [
                "ASSEMBLY.METHOD is kmeans_paper, but thresholds, scores and conformal sets were calibrated with",
                "ASSEMBLY.MERGE_DISTANCE is 0.5, but thresholds, scores and conformal sets were calibrated with 1.25 (",
                "ASSEMBLY.MERGE_OVERLAP is 0.5, but thresholds, scores and conformal sets were calibrated with 0.25 (",
                "ASSEMBLY.COVERAGE is 0.8, but thresholds, scores and conformal sets were calibrated with 0.9 (",
            ],
        ),
    ],
)
def test_what_was_calibrated_otherwise_is_a_warning(tiny_cfg, cfg, implants_root, caplog, options, expected):
    folder = Path(cfg.OUTPUT_DIR)
    fit_assembler(cfg).save(folder / ASSEMBLER)
    evaluated = tiny_cfg(*SHORT, *options, root=implants_root)
    assert load_assembler(evaluated, str(folder / "model_final.pth")) is not None
    assert not caplog.messages  # nobody knows what it was calibrated on
    (folder / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
    load_assembler(evaluated, str(folder / "model_final.pth"))
    assert len(caplog.messages) == len(expected)
    assert all(part in message for part, message in zip(expected, caplog.messages, strict=True))


def test_too_few_implants_are_a_warning_and_no_second_stage(tiny_cfg, caplog):
    cfg = tiny_cfg()
    assert fit_assembler(cfg) is None
    assert "There is no second stage: the dataset has 9 implants with all three thirds" in caplog.text
    assert load_assembler(cfg, "no/checkpoint.pth") is None


def test_beside_a_url_there_is_no_second_stage(cfg, caplog):
    assert load_assembler(cfg, "https://host/run/model_final.pth") is None
    assert "nothing is looked for beside a URL" in caplog.text


def test_a_pretraining_has_no_second_stage_whatever_its_data_allow(cfg):
    pretraining = cfg.clone()
    pretraining.defrost()
    pretraining.MODEL.META_ARCHITECTURE = "MaskedImageModel"
    with pytest.raises(ValueError, match="expected the assembler of the training"):
        load_assembler(cfg, "no/checkpoint.pth")
    assert load_assembler(pretraining, "no/checkpoint.pth") is None


def test_the_assembler_of_an_earlier_training_does_not_stay(tiny_cfg):
    cfg = tiny_cfg("SOLVER.MAX_EPOCHS", "0.1")
    stale = Path(cfg.OUTPUT_DIR) / ASSEMBLER
    stale.write_text("{}", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        train(cfg, interrupt=True)
    assert stale.exists()  # its weights are there, too
    train(cfg)
    assert not stale.exists()


def test_other_errors_of_the_fit_are_no_missing_second_stage(tiny_cfg, implants_root, monkeypatch):
    def fit(*args):
        raise ValueError("a bug")

    monkeypatch.setattr(PartAssembler, "fit", fit)
    with pytest.raises(ValueError, match="a bug"):
        fit_assembler(tiny_cfg(root=implants_root))


def test_whole_implants_alone_have_no_second_stage(tiny_cfg, implants_root, caplog):
    systems = ("DATASETS.TRAIN", "('tiny_implants_train_fold0_systems',)")
    assert fit_assembler(tiny_cfg(*systems, "DATASETS.TEST", "()", root=implants_root)) is None
    assert not caplog.text


def test_a_wrong_method_is_an_error_and_not_a_missing_second_stage(tiny_cfg, implants_root):
    with pytest.raises(ValueError, match=r"ASSEMBLY\.METHOD: found 'guess'"):
        fit_assembler(tiny_cfg("ASSEMBLY.METHOD", "guess", root=implants_root))


def test_nothing_is_reported_on_what_calibrated(tiny_cfg, implants_root, caplog):
    cfg = tiny_cfg(*SHORT, "DATASETS.TEST", "('tiny_implants_test',)", root=implants_root)
    train(cfg)
    assert "calibrated on it: no implants are reported" in caplog.text
    assert (Path(cfg.OUTPUT_DIR) / ASSEMBLER).is_file()
    assert not (Path(cfg.OUTPUT_DIR) / "tiny_implants_test").exists()
