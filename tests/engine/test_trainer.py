"""Trainings of six iterations: exact resuming, averaged weights, the best checkpoint, evaluation."""

import json
from pathlib import Path

import pytest
import torch
from conftest import write_idd
from detectron2.data import DatasetCatalog
from detectron2.modeling import GeneralizedRCNN
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from implantdet.data.idd import load_idd, write_json
from implantdet.data.images import read_radiograph
from implantdet.engine.trainer import Trainer, build_validation_loader

# Six images in batches of two: an epoch has three iterations.
TWO_EPOCHS = ("SOLVER.MAX_EPOCHS", "2.0", "SOLVER.EVAL_EPOCHS", "1.0")


def train(cfg, resume=False, interrupt_at=None):
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    run_step = trainer.run_step

    def interrupted_step():
        if trainer.iter == interrupt_at:
            raise KeyboardInterrupt
        run_step()

    trainer.run_step = interrupted_step
    trainer.train()
    return trainer


def checkpoint(cfg, name):
    return torch.load(Path(cfg.OUTPUT_DIR) / f"{name}.pth", weights_only=True)


def last_metrics(cfg):
    """The last value of every scalar; those of the final evaluation stand in a line of their own."""
    lines = (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text(encoding="utf-8").splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


def results(folder):
    return json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))


def assert_same_bits(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.fixture
def other_dir(tmp_path):
    (tmp_path / "other").mkdir()
    return ("OUTPUT_DIR", str(tmp_path / "other"))


def test_an_interrupted_training_ends_with_the_same_bits(tiny_cfg, other_dir):
    options = (*TWO_EPOCHS, "SOLVER.EMA_DECAY", "0.9", "MODEL.VIT.DROP_PATH_RATE", "0.3")
    whole, parts = tiny_cfg(*options), tiny_cfg(*options, *other_dir)
    train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(parts, interrupt_at=5)  # the checkpoint is of iteration 2
    resumed = train(parts, resume=True)
    assert resumed.start_iter == 3
    found, expected = checkpoint(parts, "model_final"), checkpoint(whole, "model_final")
    assert found.keys() == expected.keys() == {"model", "ema", "trainer", "iteration"}
    assert_same_bits(found["model"], expected["model"])
    assert_same_bits(found["ema"], expected["ema"])
    assert_same_bits(found["trainer"]["_trainer"]["optimizer"], expected["trainer"]["_trainer"]["optimizer"])
    assert found["trainer"]["iteration"] == 5
    for key in ("validation_loss", "lr", "bbox/AR100"):
        assert last_metrics(parts)[key] == last_metrics(whole)[key]


def test_evaluating_does_not_change_the_training(tiny_cfg, other_dir):
    with_test, without = tiny_cfg(*TWO_EPOCHS), tiny_cfg(*TWO_EPOCHS, *other_dir, "DATASETS.TEST", "()")
    train(with_test)
    train(without)
    assert_same_bits(checkpoint(without, "model_final")["model"], checkpoint(with_test, "model_final")["model"])


def test_averaged_weights_are_what_is_evaluated(tiny_cfg, monkeypatch):
    cfg = tiny_cfg(*TWO_EPOCHS, "SOLVER.EMA_DECAY", "0.9")
    evaluated = []

    def record(cfg, model, evaluators=None):
        evaluated.append({key: value.clone() for key, value in model.state_dict().items()})
        return {"bbox": {"AP": 50.0}}

    monkeypatch.setattr(Trainer, "test", staticmethod(record))
    train(cfg)
    saved = checkpoint(cfg, "model_final")
    assert not torch.equal(saved["ema"]["backbone.net.pos_embed"], saved["model"]["backbone.net.pos_embed"])
    assert_same_bits(evaluated[-1], dict(saved["ema"]))
    # --eval-only finds them too.
    eval_cfg = cfg.clone()
    eval_cfg.defrost()
    eval_cfg.MODEL.WEIGHTS = f"{cfg.OUTPUT_DIR}/model_final.pth"
    Trainer.evaluate(eval_cfg)
    assert_same_bits(evaluated[-1], dict(saved["ema"]))


def test_the_best_checkpoint_is_of_the_best_ap(tiny_cfg, monkeypatch):
    cfg = tiny_cfg("SOLVER.MAX_EPOCHS", "3.0", "SOLVER.EVAL_EPOCHS", "1.0")
    values = iter([10.0, 30.0, 20.0])
    monkeypatch.setattr(Trainer, "test", lambda *_: {"bbox": {"AP": next(values)}})
    train(cfg)
    assert checkpoint(cfg, "model_best")["iteration"] == 5  # the second of three epochs
    best = json.loads((Path(cfg.OUTPUT_DIR) / "model_best.json").read_text(encoding="utf-8"))
    assert best == {"metric": "bbox/AP", "value": 30.0, "iteration": 5, "compared": 9}
    # Of the others, the last two are kept.
    assert sorted(path.name for path in Path(cfg.OUTPUT_DIR).glob("model_0*")) == [
        "model_0000005.pth",
        "model_0000008.pth",
    ]


def test_checkpoints_may_be_denser_than_evaluations(tiny_cfg, monkeypatch):
    cfg = tiny_cfg(*("SOLVER.MAX_EPOCHS", "2.0", "SOLVER.EVAL_EPOCHS", "2.0", "SOLVER.CHECKPOINT_EPOCHS", "0.34"))
    evaluated = []
    monkeypatch.setattr(Trainer, "test", lambda *_: evaluated.append(1) or {"bbox": {"AP": 0.0}})
    train(cfg)
    assert len(evaluated) == 1
    # Of six, after each of six iterations, the last two are kept.
    assert sorted(path.name for path in Path(cfg.OUTPUT_DIR).glob("model_0*")) == [
        "model_0000004.pth",
        "model_0000005.pth",
    ]


def test_evaluation_after_training_gives_the_numbers_of_the_training(tiny_cfg):
    cfg = tiny_cfg(*TWO_EPOCHS)
    train(cfg)
    expected = results(cfg.OUTPUT_DIR)
    assert set(expected) == {"dataset", "num_images", "num_annotations", "num_detections", "bbox", "segm"}
    assert Trainer.evaluate(cfg, resume=True)["bbox"]["AR100"] == last_metrics(cfg)["bbox/AR100"]
    assert results(cfg.OUTPUT_DIR) == expected


def test_several_test_sets_have_a_folder_each(tiny_cfg):
    cfg = tiny_cfg("DATASETS.TEST", "('tiny_masks_val_fold0', 'tiny_masks_test')", "SOLVER.MAX_EPOCHS", "1.0")
    train(cfg)
    for name in cfg.DATASETS.TEST:
        assert results(f"{cfg.OUTPUT_DIR}/{name}")["dataset"] == name
    best = json.loads((Path(cfg.OUTPUT_DIR) / "model_best.json").read_text(encoding="utf-8"))
    assert best["value"] == last_metrics(cfg)["tiny_masks_val_fold0/bbox/AP"]  # the first one decides


def test_a_new_start_hides_the_old_checkpoints_from_a_resume(tiny_cfg, caplog):
    cfg = tiny_cfg(*TWO_EPOCHS)
    train(cfg)
    assert "starts anew" not in caplog.text
    with pytest.raises(KeyboardInterrupt):
        train(cfg, interrupt_at=1)
    assert "has a training that came to model_final.pth. This one starts anew and takes its place" in caplog.text
    assert train(cfg, resume=True).start_iter == 0
    assert "has no checkpoint to resume; the training starts from random weights" in caplog.text


def test_a_training_that_lost_its_final_checkpoint_gets_it_by_a_resume(tiny_cfg):
    """It was killed between the last two files that it writes."""
    cfg = tiny_cfg(*TWO_EPOCHS, "DATASETS.TEST", "()")
    train(cfg)
    folder = Path(cfg.OUTPUT_DIR)
    weights = checkpoint(cfg, "model_final")["model"]
    (folder / "model_final.pth").unlink()
    (folder / "last_checkpoint").write_text(sorted(path.name for path in folder.glob("model_0*.pth"))[-1], "utf-8")
    train(cfg, resume=True)
    again = checkpoint(cfg, "model_final")["model"]
    assert all(torch.equal(again[key], value) for key, value in weights.items())


@pytest.mark.parametrize(
    ("option", "is_warned"), [(("SOLVER.BASE_LR", 0.5), True), (("SOLVER.MAX_EPOCHS", 3.0), False)]
)
def test_a_resume_goes_on_with_the_rates_of_the_training_and_says_so(tiny_cfg, caplog, option, is_warned):
    options = (*TWO_EPOCHS, "DATASETS.TEST", "()")
    cfg = tiny_cfg(*options)
    train(cfg)
    resumed = tiny_cfg(*options, *option).clone()
    resumed.defrost()
    resumed.OUTPUT_DIR = cfg.OUTPUT_DIR
    trainer = train(resumed, resume=True)
    assert ("which goes on with its own" in caplog.text) == is_warned
    assert trainer._trainer.optimizer.param_groups[0]["initial_lr"] < 0.5


def test_expected_results_are_compared_after_the_last_evaluation(tiny_cfg):
    cfg = tiny_cfg(*TWO_EPOCHS).clone()
    cfg.defrost()
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 0.0, 200.0]]
    train(cfg)
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 500.0, 1.0]]
    with pytest.raises(SystemExit):
        train(cfg)


def test_a_seed_that_was_drawn_is_resumed(tiny_cfg):
    cfg = tiny_cfg(*TWO_EPOCHS, "SEED", "-1", "DATASETS.TEST", "()")
    with pytest.raises(KeyboardInterrupt):
        train(cfg, interrupt_at=5)
    drawn = checkpoint(cfg, "model_0000002")["trainer"]["_trainer"]["seed"]
    resumed = train(cfg, resume=True)
    assert resumed.seed == resumed._trainer.seed == drawn


def test_processes_that_find_other_checkpoints_do_not_train(tiny_cfg, monkeypatch):
    """As machines do that share no OUTPUT_DIR."""
    cfg = tiny_cfg(*TWO_EPOCHS, "DATASETS.TEST", "()")
    trainer = train(cfg)
    monkeypatch.setattr(comm, "all_gather", lambda name: [name, ""])
    message = r"the processes find the checkpoints \['model_final\.pth', ''\] .* need a common OUTPUT_DIR"
    with pytest.raises(ValueError, match=message):
        trainer.resume_or_load(resume=True)


def test_training_images_are_drawn_and_validation_images_are_not(tiny_cfg, monkeypatch):
    drawn = []
    monkeypatch.setattr(EventStorage, "put_image", lambda storage, name, image: drawn.append((name, storage.iter)))
    train(tiny_cfg("VIS_PERIOD", "3", *TWO_EPOCHS))
    assert [iteration for name, iteration in drawn if name.startswith("Left: GT")] == [0, 3]


@pytest.mark.parametrize("checkpointing", ["False", "True"])
def test_mixed_precision_trains_on_the_cpu(tiny_cfg, checkpointing):
    options = ("SOLVER.AMP.ENABLED", "True", "DATASETS.TEST", "()", "MODEL.VIT.CHECKPOINTING", checkpointing)
    cfg = tiny_cfg(*options, *TWO_EPOCHS)
    trainer = train(cfg)
    assert trainer._trainer.amp
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    assert last_metrics(cfg)["total_loss"] > 0


def test_the_training_pastes_implants(tiny_cfg, monkeypatch):
    cfg = tiny_cfg("SOLVER.MAX_EPOCHS", "1.0", "INPUT.MASK_FORMAT", "bitmask", "INPUT.COPY_PASTE_PROB", "1.0")
    counts = []
    forward = GeneralizedRCNN.forward

    def record(self, batched_inputs):
        if self.training:
            counts.extend(len(image["instances"]) for image in batched_inputs)
        return forward(self, batched_inputs)

    monkeypatch.setattr(GeneralizedRCNN, "forward", record)
    train(cfg)
    annotated = [len(record["annotations"]) for record in DatasetCatalog.get(cfg.DATASETS.TRAIN[0])]
    assert max(annotated) == 8 < max(counts) == 12  # two implants of four annotations, and a third one


@pytest.fixture
def seen(monkeypatch):
    """What the detector is asked about, image by image."""
    images = []
    inference = GeneralizedRCNN.inference

    def record(self, batched_inputs, *args, **kwargs):
        images.extend(batched_inputs)
        return inference(self, batched_inputs, *args, **kwargs)

    monkeypatch.setattr(GeneralizedRCNN, "inference", record)
    return images


@pytest.mark.parametrize("enabled", [False, True])
def test_evaluation_looks_at_every_version_of_an_image(tiny_cfg, seen, enabled):
    cfg = tiny_cfg("SOLVER.MAX_EPOCHS", "0.1", "DATASETS.TEST", "()")
    train(cfg)
    options = ("TEST.AUG.ENABLED", enabled, "TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.ROT90", True)
    options += ("INPUT.MIN_SIZE_TEST", 32, "MODEL.WEIGHTS", f"{cfg.OUTPUT_DIR}/model_final.pth")
    evaluated = tiny_cfg(*options, "MODEL.MASK_ON", False)
    assert Trainer.evaluate(evaluated)["bbox"].keys() >= {"AP", "AP50"}
    assert len(seen) == 2 * (8 if enabled else 1)  # two images, in the eight symmetries of the square
    if enabled:  # the pixels of the file: nothing made it smaller before
        assert_same_bits(seen[0]["image"][0], torch.tensor(read_radiograph(seen[0]["file_name"])).float())
    else:
        assert seen[0]["image"].shape == (1, 32, 32)


def test_validation_in_a_training_takes_one_version_whatever_the_final_evaluation_takes(tiny_cfg, seen):
    train(tiny_cfg("SOLVER.MAX_EPOCHS", "0.1", "TEST.AUG.ENABLED", True, "INPUT.MIN_SIZE_TEST", 32))
    assert [item["image"].shape for item in seen] == [(1, 32, 32)] * 2


def test_evaluations_look_at_tiles_in_a_training_and_after_it(tiny_cfg, seen):
    options = ("INPUT.MIN_SIZE_TEST", 48, "TEST.TILE_SIZE", 32, "TEST.TILE_OVERLAP", 8, "MODEL.MASK_ON", False)
    cfg = tiny_cfg("SOLVER.MAX_EPOCHS", "0.1", *options)
    train(cfg)
    assert [item["image"].shape for item in seen] == [(1, 32, 32)] * 10  # two images, each in four tiles and shrunk
    results = Trainer.evaluate(tiny_cfg(*options, "MODEL.WEIGHTS", f"{cfg.OUTPUT_DIR}/model_final.pth"))
    assert results["bbox"].keys() >= {"AP", "AP50"}
    assert len(seen) == 20


def test_validation_data_is_whole_annotated_and_not_augmented(tiny_cfg):
    batches = [list(build_validation_loader(tiny_cfg())) for _ in range(2)]
    assert [len(batch) for batch in batches[0]] == [1, 1]
    for (item,), (same,) in zip(*batches, strict=True):
        assert_same_bits(item["image"], same["image"])
        assert len(item["instances"]) in (4, 8)


@pytest.fixture
def panoramics(tmp_path):
    """A dataset folder of panoramic radiographs."""
    root = write_idd(tmp_path / tmp_path.name)  # registered under this name
    content = json.loads((root / "annotations.json").read_text(encoding="utf-8"))
    content["images"] = [image | {"modality": "panoramic"} for image in content["images"]]
    (root / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def test_panoramics_are_validated_as_they_are_tested(tiny_cfg, panoramics):
    cfg = tiny_cfg("INPUT.MIN_SIZE_TEST", 32, "INPUT.PANORAMIC_ZOOM", 1.5, root=panoramics)
    batches = zip(*(list(build_validation_loader(cfg)) for _ in range(2)), strict=True)
    for ((item,), (same,)), (tested,) in zip(
        batches, Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]), strict=True
    ):
        assert item["image"].shape == (1, 48, 48)
        assert_same_bits(item["image"], same["image"])
        assert_same_bits(item["image"], tested["image"])


def test_panoramics_go_to_their_versions_in_their_own_size(tiny_cfg, panoramics):
    cfg = tiny_cfg("INPUT.MIN_SIZE_TEST", 32, "INPUT.PANORAMIC_ZOOM", 1.5, "TEST.AUG.ENABLED", True, root=panoramics)
    for (item,) in Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]):
        assert_same_bits(item["image"][0], torch.tensor(read_radiograph(item["file_name"])).float())


def test_a_zoom_without_modalities_is_a_warning(tiny_cfg, caplog):
    for zoom, told in ((1.0, False), (2.0, True)):
        cfg = tiny_cfg("INPUT.PANORAMIC_ZOOM", zoom)
        caplog.clear()
        Trainer.build_mapper(cfg, Trainer.build_dataset_dicts(cfg))
        assert ("has a 'modality'" in caplog.text) == told


def test_a_batch_that_cannot_be_split_is_an_error(tiny_cfg):
    with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH is 2; expected a multiple of 1 process\(es\) × .* 4"):
        Trainer(tiny_cfg("SOLVER.ACCUMULATION_STEPS", "4"))
    with pytest.raises(ValueError, match=r"SOLVER\.REFERENCE_WORLD_SIZE is 8; expected 0"):
        Trainer(tiny_cfg("SOLVER.REFERENCE_WORLD_SIZE", "8"))


@pytest.mark.parametrize("resume", [False, True])
def test_evaluating_nothing_is_an_error(tiny_cfg, resume):
    with pytest.raises(FileNotFoundError, match=r"nope/model_final\.pth: no such file; MODEL\.WEIGHTS is"):
        Trainer.evaluate(tiny_cfg("MODEL.WEIGHTS", "nope/model_final.pth"))
    with pytest.raises(ValueError, match=r"nothing to evaluate: give MODEL\.WEIGHTS"):
        Trainer.evaluate(tiny_cfg(), resume=resume)


def test_settings_reach_their_parts(tiny_cfg, untrained):
    options = ("SOLVER.EMA_DECAY", "0.75", "SOLVER.AMP.ENABLED", "True", "SOLVER.ACCUMULATION_STEPS", "2")
    trainer = untrained(tiny_cfg(*options, "MODEL.VIT.ALLOW_PARTIAL_WEIGHTS", "True", "DATASETS.TEST", "()"))
    assert (trainer.ema.decay, trainer.ema.use_warmup) == (0.75, True)
    assert (trainer._trainer.amp, trainer._trainer.accumulation_steps) == (True, 2)
    assert trainer.checkpointer.allow_partial


def test_radiographs_without_implants_are_trained_on(tiny_cfg, tmp_path):
    root = write_idd(tmp_path / "bare")
    content = load_idd(root)
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] != 3]
    write_json(root / "annotations.json", content)
    assert 3 in {record["image_id"] for record in Trainer.build_dataset_dicts(tiny_cfg(root=root))}
