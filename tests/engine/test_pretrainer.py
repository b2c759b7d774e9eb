"""Pre-training end to end: exact resuming, the target's update, held-out images, and the road to the detector."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import write_idd
from detectron2.config import get_cfg

from implantdet.config import add_implantdet_config
from implantdet.data.register import register_idd
from implantdet.engine import pretrainer
from implantdet.engine.checkpoint import Checkpointer
from implantdet.engine.collapse_guard import CollapseGuard, TargetCollapseError
from implantdet.engine.pretrainer import Pretrainer, trainer_class
from implantdet.engine.trainer import Trainer
from implantdet.modeling.weights import load_backbone_weights

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def mim_cfg(idd_root, tmp_path):
    """A function: the complete config of pretrain_mde_smoke.yaml on the tiny dataset, six iterations long."""

    def build(*opts):
        cfg = get_cfg()
        add_implantdet_config(cfg)
        cfg.merge_from_file(str(CONFIGS / "pretrain_mde_smoke.yaml"))
        cfg.merge_from_list(
            ["DATASETS.ROOT", str(idd_root), "DATASETS.NAME", "mim", "OUTPUT_DIR", str(tmp_path / "out")]
        )
        cfg.merge_from_list(["DATASETS.TRAIN", "('mim_train_fold0',)", "DATASETS.TEST", "('mim_val_fold0',)"])
        cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_EPOCHS", "2.0", *opts])
        register_idd(cfg.DATASETS.ROOT, cfg.DATASETS.NAME)
        Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
        cfg.freeze()
        return cfg

    return build


def train(cfg, resume=False, interrupt_at=None):
    trainer = trainer_class(cfg)(cfg)
    trainer.resume_or_load(resume=resume)
    run_step = trainer.run_step

    def interrupted_step():
        if trainer.iter == interrupt_at:
            raise KeyboardInterrupt
        run_step()

    trainer.run_step = interrupted_step
    trainer.train()
    return trainer


def checkpoint(cfg, name="model_final"):
    return torch.load(Path(cfg.OUTPUT_DIR) / f"{name}.pth", weights_only=True)


def test_meta_architecture_decides_the_trainer(mim_cfg, tiny_cfg):
    assert trainer_class(mim_cfg()) is Pretrainer
    assert trainer_class(tiny_cfg()) is Trainer


def test_an_interrupted_pretraining_ends_with_the_same_bits(mim_cfg, tmp_path):
    whole = mim_cfg("SOLVER.EVAL_EPOCHS", "1.0")
    parts = mim_cfg("SOLVER.EVAL_EPOCHS", "1.0", "OUTPUT_DIR", str(tmp_path / "other"))
    train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(parts, interrupt_at=5)  # the checkpoint is of iteration 2
    assert train(parts, resume=True).start_iter == 3
    found, expected = checkpoint(parts), checkpoint(whole)
    assert any(name.startswith("target.teacher.") for name in expected["model"])
    torch.testing.assert_close(found["model"], expected["model"], rtol=0, atol=0)
    assert found["trainer"]["hooks"]["CollapseGuard"] == expected["trainer"]["hooks"]["CollapseGuard"]
    # The comparison is not one of untrained weights.
    assert not torch.equal(
        checkpoint(whole, "model_0000002")["model"]["decoder.embed.weight"], expected["model"]["decoder.embed.weight"]
    )


def test_the_target_follows_every_step(mim_cfg):
    """Six steps of the moving average by hand, from the weights of every step."""
    trainer = Pretrainer(mim_cfg("MODEL.MIM.EMA_DECAY", "0.5", "DATASETS.TEST", "()", "SOLVER.BASE_LR", "0.01"))
    model = trainer.checkpointer.model
    average = model.encoder.blocks[0].mlp.fc1.weight.detach().clone()
    after_step = trainer.after_step

    def record():
        nonlocal average
        average = 0.5 * average + 0.5 * model.encoder.blocks[0].mlp.fc1.weight.detach()
        after_step()

    trainer.after_step = record
    trainer.train()
    assert torch.allclose(model.target.teacher.blocks[0].mlp.fc1.weight, average, atol=1e-6)
    assert not torch.allclose(model.encoder.blocks[0].mlp.fc1.weight, average, atol=1e-4)


def test_the_target_takes_over_loaded_weights(mim_cfg, untrained, tmp_path):
    first = train(mim_cfg("DATASETS.TEST", "()"))
    weights = ("MODEL.WEIGHTS", str(tmp_path / "out/model_final.pth"), "OUTPUT_DIR", str(tmp_path / "second"))
    second = untrained(mim_cfg(*weights, "SEED", "5", "DATASETS.TEST", "()"))
    second.resume_or_load(resume=False)
    second.before_train()
    loaded, teacher = first.checkpointer.model.encoder.state_dict(), second.checkpointer.model.target.teacher
    assert len(teacher.blocks) > 0
    of_teacher = {key: loaded[key] for key in teacher.state_dict()}  # it ends below the encoder
    torch.testing.assert_close(teacher.state_dict(), of_teacher, rtol=0, atol=0)


def test_checkpoint_goes_straight_into_the_detector(mim_cfg, tiny_cfg, untrained):
    cfg = mim_cfg("DATASETS.TEST", "()")
    model = train(cfg).checkpointer.model.eval()
    path = f"{cfg.OUTPUT_DIR}/model_final.pth"
    detector = untrained(tiny_cfg("MODEL.WEIGHTS", path, "DATASETS.TEST", "()"))
    detector.resume_or_load(resume=False)
    net = detector.checkpointer.model.backbone.net.eval()
    assert net.state_dict().keys() == model.encoder.state_dict().keys()
    torch.testing.assert_close(net.state_dict(), model.encoder.state_dict(), rtol=0, atol=0)
    images = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(net(images)["last_feat"], model.encoder(images)["last_feat"], rtol=0, atol=1e-6)
    load_backbone_weights(detector.checkpointer.model, path)  # raises if one key of the backbone is missing


def test_evaluation_writes_reconstructions(mim_cfg):
    cfg = mim_cfg()
    train(cfg)
    written = json.loads((Path(cfg.OUTPUT_DIR) / "reconstruction.json").read_text(encoding="utf-8"))
    assert written["num_images"] == 2
    results = Pretrainer.evaluate(cfg, resume=True)
    assert results["reconstruction"] == written["reconstruction"]
    assert (Path(cfg.OUTPUT_DIR) / "reconstruction.png").read_bytes().startswith(b"\x89PNG")


def test_a_pretraining_probes_its_features(mim_cfg, tmp_path):
    """Also those of weights that are an encoder alone, which reconstruct nothing."""
    root = write_idd(tmp_path / "many", num_images=60)
    cfg = mim_cfg("DATASETS.ROOT", str(root), "DATASETS.NAME", "probed", "DATASETS.TEST", "('probed_train_fold0',)")
    cfg.defrost()
    cfg.DATASETS.TRAIN = ("probed_val_fold0",)
    model = Pretrainer.build_model(cfg)
    Checkpointer(model, cfg.OUTPUT_DIR).save("model_final")
    whole = Pretrainer.evaluate(cfg, resume=True)
    written = json.loads((Path(cfg.OUTPUT_DIR) / "features.json").read_text(encoding="utf-8"))
    assert 0 < whole["features"]["linear"] == written["features"]["linear"] <= 100

    torch.save({"model": model.encoder.state_dict()}, tmp_path / "encoder.pth")
    cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = str(tmp_path / "alone"), str(tmp_path / "encoder.pth")
    alone = Pretrainer.evaluate(cfg)
    assert alone["features"] == whole["features"]
    assert "reconstruction" not in alone
    assert {path.name for path in (tmp_path / "alone").glob("*.json")} == {"features.json"}

    torch.save({"model": {"decoder.pred.bias": torch.zeros(1)}}, tmp_path / "other.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "other.pth")
    with pytest.raises(ValueError, match="none of these weights is one of a ViT"):
        Pretrainer.evaluate(cfg)


def test_a_pretraining_in_mixed_precision(mim_cfg, tmp_path):
    """Products are rounded, weights are not, and the way that these go is about the same."""
    moves = []
    for enabled, dtype in (("True", torch.bfloat16), ("False", torch.float32)):
        options = ("SOLVER.AMP.ENABLED", enabled, "DATASETS.TEST", "()", "OUTPUT_DIR", str(tmp_path / enabled))
        trainer, seen = Pretrainer(mim_cfg(*options)), set()
        encoder = trainer.checkpointer.model.encoder
        encoder.blocks[0].mlp.fc1.register_forward_hook(lambda _, given, found, seen=seen: seen.add(found.dtype))
        start = torch.cat([p.detach().flatten().clone() for p in encoder.parameters()])
        trainer.train()
        assert seen == {dtype}
        moves.append(torch.cat([p.detach().flatten() for p in encoder.parameters()]) - start)
    assert moves[0].dtype == torch.float32 and moves[0].norm() > 0
    assert torch.cosine_similarity(*moves, dim=0) > 0.9


def test_a_zoom_that_does_nothing_is_a_warning(mim_cfg, idd_root, tmp_path, caplog):
    shutil.copytree(idd_root / "images", tmp_path / "folder")
    options = ("DATASETS.IMAGE_FOLDER", str(tmp_path / "folder"), "DATASETS.TEST", "()", "INPUT.PANORAMIC_ZOOM", "2.0")
    Pretrainer.build_mapper(mim_cfg(*options), [{"file_name": "a.png"}])
    assert "INPUT.PANORAMIC_ZOOM is 2.0, but no image of the training set has a 'modality'" in caplog.text


@pytest.mark.parametrize("count", [2, 3, 5, 7, 8])
def test_guard_images_are_evenly_spaced(mim_cfg, untrained, monkeypatch, count):
    trainer = untrained(mim_cfg("MODEL.MIM.GUARD_IMAGES", str(count), "DATASETS.TEST", "()"))
    trainer.dataset_dicts = [{"number": number} for number in range(8)]
    monkeypatch.setattr(
        pretrainer, "LeaveOutUnreadable", lambda mapper: lambda item: {"image": torch.tensor(item["number"])}
    )
    found = trainer.guard_images().tolist()
    assert len(set(found)) == len(found) == count and found[0] == 0
    gaps = {b - a for a, b in zip(found, [*found[1:], 8], strict=True)}
    assert max(gaps) - min(gaps) <= 1


def test_evaluation_takes_the_model_as_it_is(mim_cfg):
    """Also where the config asks for test-time augmentation, which unites detections."""
    found = []
    for enabled in ("False", "True"):
        cfg = mim_cfg("TEST.AUG.ENABLED", enabled, "INPUT.MIN_SIZE_TEST", "32")  # half the size of the images
        torch.manual_seed(0)
        Checkpointer(Pretrainer.build_model(cfg), cfg.OUTPUT_DIR).save("model_final")
        found.append(Pretrainer.evaluate(cfg, resume=True)["reconstruction"]["PSNR_pixels"])
    assert found[1] == found[0] > 0


def test_a_folder_of_images_is_enough(mim_cfg, idd_root, tmp_path):
    shutil.copytree(idd_root / "images", tmp_path / "folder" / "sub")
    trainer = Pretrainer(mim_cfg("DATASETS.IMAGE_FOLDER", str(tmp_path / "folder"), "DATASETS.TEST", "()"))
    assert len(trainer.dataset_dicts) == 8  # ten, without the two of mim_test
    trainer.train()
    assert trainer.iter == trainer.max_iter == 8


def test_a_collapse_ends_the_training_before_anything_is_saved(mim_cfg):
    """Embeddings that are the encoder's own shrink with its weights, which decay by half in every step."""
    cfg = mim_cfg(
        *("MODEL.MIM.TARGET", "patch_embed", "MODEL.MIM.NORM_TARGET", "False", "MODEL.MIM.GUARD_PERIOD", "1"),
        *(
            "MODEL.MIM.GUARD_FRACTION",
            "0.05",
            "SOLVER.BASE_LR",
            "0.005",
            "SOLVER.WEIGHT_DECAY",
            "100.0",
            "SOLVER.WARMUP_EPOCHS",
            "0.0",
        ),
        *("SOLVER.MAX_EPOCHS", "20.0", "SOLVER.CHECKPOINT_EPOCHS", "20.0", "SOLVER.EVAL_EPOCHS", "20.0"),
    )
    with pytest.raises(TargetCollapseError, match=r"the target collapsed: after \d+ iterations its std"):
        train(cfg)
    out = Path(cfg.OUTPUT_DIR)
    assert not list(out.glob("*.pth")) and not (out / "last_checkpoint").exists()
    told = [json.loads(line) for line in (out / "metrics.json").read_text(encoding="utf-8").splitlines()]
    assert told[-1]["target_std"] < told[0]["target_std"]


def test_pixels_need_no_guard(mim_cfg, untrained):
    opts = ("MODEL.MIM.TARGET", "pixel", "MODEL.MIM.PIXEL_WEIGHT", "0.0", "DATASETS.TEST", "()")
    assert "CollapseGuard" not in {type(hook).__name__ for hook in untrained(mim_cfg(*opts))._hooks}


def test_guard_needs_two_images(mim_cfg, untrained):
    with pytest.raises(ValueError, match=r"compares images, and found 1; expected MODEL.MIM.GUARD_IMAGES >= 2"):
        untrained(mim_cfg("MODEL.MIM.GUARD_IMAGES", "1", "DATASETS.TEST", "()")).train()


def test_the_guard_is_as_the_config_says(mim_cfg, untrained):
    trainer = untrained(
        mim_cfg("MODEL.MIM.GUARD_PERIOD", "7", "MODEL.MIM.GUARD_FRACTION", "0.3", "DATASETS.TEST", "()")
    )
    (guard,) = (hook for hook in trainer._hooks if isinstance(hook, CollapseGuard))
    assert (guard._period, guard._min_fraction) == (7, 0.3)
