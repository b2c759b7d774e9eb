"""Checkpoints: what is refused, what has to be covered, and what a crash leaves behind."""

import logging
import pickle

import pytest
import timm
import torch
from detectron2.modeling import build_model
from torch import nn

from implantdet.engine.checkpoint import BEST, Checkpointer


def linear(value=0.0):
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, value)
    return model


def test_round_trip_with_other_objects(tmp_path):
    model, average = linear(1.0), linear(2.0)
    Checkpointer(model, str(tmp_path), ema=average).save("model_0000009", iteration=9)
    other, other_average = linear(), linear()
    checkpointer = Checkpointer(other, str(tmp_path), ema=other_average)
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000009.pth")
    rest = checkpointer.load(checkpointer.get_checkpoint_file())
    torch.testing.assert_close(other.state_dict(), model.state_dict())
    torch.testing.assert_close(other_average.state_dict(), average.state_dict())
    assert rest["iteration"] == 9


def test_starting_from_weights_leaves_the_other_objects_alone(tmp_path):
    Checkpointer(linear(1.0), str(tmp_path), ema=linear(2.0)).save("weights")
    model, average = linear(), linear(5.0)
    Checkpointer(model, ema=average).resume_or_load(str(tmp_path / "weights.pth"), resume=False)
    assert model.weight[0, 0] == 1.0
    assert average.weight[0, 0] == 5.0


def test_a_crash_while_writing_leaves_the_last_complete_checkpoint(tmp_path, monkeypatch):
    checkpointer = Checkpointer(linear(1.0), str(tmp_path))
    checkpointer.save("model_0000000")
    original = torch.save

    def crash(content, path):
        original(content, path)
        with path.open("r+b") as file:
            file.truncate(100)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save("model_0000001")
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["model_0000000.pth"]
    model = linear()
    Checkpointer(model, str(tmp_path)).resume_or_load("", resume=True)
    assert model.weight[0, 0] == 1.0
    # The rest of it is overwritten, not collected.
    monkeypatch.setattr(torch, "save", original)
    checkpointer.save("model_0000001")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "last_checkpoint",
        "model_0000000.pth",
        "model_0000001.pth",
    ]


def test_the_best_checkpoint_is_not_the_one_to_resume(tmp_path):
    checkpointer = Checkpointer(linear(1.0), str(tmp_path))
    checkpointer.save("model_0000000")
    checkpointer.save(BEST)
    assert checkpointer.get_checkpoint_file().endswith("model_0000000.pth")


def test_pickles_are_refused(tmp_path):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": {}}))
    with pytest.raises(ValueError, match=r"model\.pkl: found a pickle"):
        Checkpointer(linear()).load(str(path))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'owned')!r}, 'w')",))

    torch.save({"model": linear().state_dict(), "extra": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth: expected a checkpoint of nothing but tensors"):
        Checkpointer(linear()).load(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "owned").exists()


def test_a_checkpoint_that_does_not_fit_is_no_start_over(tmp_path):
    torch.save({"model": nn.Linear(3, 1).state_dict()}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"does not fit the model: 1 keys .* such as weight. .*config\.yaml"):
        Checkpointer(linear()).load(str(tmp_path / "other.pth"))


def test_what_is_resumed_has_no_more_than_the_model(tmp_path):
    """A training of something else left it; to evaluate a part of a model is no mistake."""
    content = {"model": linear(1.0).state_dict() | {"target.teacher": torch.zeros(1)}, "trainer": linear().state_dict()}
    path = tmp_path / "other.pth"
    torch.save(content, path)
    message = r"other\.pth: .* 0 keys are missing .* 1 are not the model's, such as target\.teacher\."
    with pytest.raises(ValueError, match=message):
        Checkpointer(linear(), trainer=linear()).load(str(path))
    Checkpointer(linear(), trainer=linear()).load(str(path), checkpointables=[])  # MODEL.WEIGHTS
    Checkpointer(linear()).load(str(path))


@pytest.mark.parametrize(
    ("saved", "wanted", "message"),
    [
        ({"ema"}, set(), r"found averaged weights in the checkpoint, and no SOLVER\.EMA_DECAY"),
        (set(), {"ema"}, r"found no averaged weights in the checkpoint, and a SOLVER\.EMA_DECAY"),
    ],
)
def test_averaged_weights_are_resumed_by_a_training_that_averages(tmp_path, saved, wanted, message):
    def checkpointer(names):
        return Checkpointer(linear(), str(tmp_path), trainer=linear(), **{name: linear() for name in names})

    checkpointer(saved).save("model_0000009")
    path = str(tmp_path / "model_0000009.pth")
    with pytest.raises(ValueError, match=message):
        checkpointer(wanted).load(path)
    checkpointer(saved).load(path)
    checkpointer(wanted).load(path, checkpointables=[])  # MODEL.WEIGHTS
    Checkpointer(linear()).load(path)  # to evaluate


def test_a_file_that_is_not_there_says_what_could_be(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"none\.pth: no such file; MODEL\.WEIGHTS is a \.pth file, a URL, or timm"
    ):
        Checkpointer(linear()).resume_or_load(str(tmp_path / "none.pth"), resume=False)
    Checkpointer(linear(), str(tmp_path)).save("there")
    Checkpointer(linear()).load(f"{tmp_path}/there.pth?matching_heuristics=False")


@pytest.fixture
def detector(tiny_cfg):
    return build_model(tiny_cfg())


def test_weights_of_a_backbone_load_and_the_rest_starts_anew(detector, tmp_path, caplog, monkeypatch):
    vit = timm.create_model("test_vit", img_size=64, patch_size=16, in_chans=1)
    torch.save({"model": vit.state_dict()}, tmp_path / "vit.pth")
    head = detector.roi_heads.box_predictor.cls_score.weight.clone()
    monkeypatch.setattr(logging.getLogger("implantdet"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="implantdet"):
        Checkpointer(detector).resume_or_load(str(tmp_path / "vit.pth"), resume=False)
    torch.testing.assert_close(detector.backbone.net.blocks[0].mlp.fc1.weight, vit.blocks[0].mlp.fc1.weight)
    torch.testing.assert_close(detector.roi_heads.box_predictor.cls_score.weight, head)
    num_vit, num_all = len(detector.backbone.net.state_dict()), len(detector.state_dict())
    assert f"Loaded {num_vit} of the model's {num_all} keys; {num_all - num_vit} missing" in caplog.text


def test_half_a_backbone_is_an_error_unless_asked_for(detector, tmp_path):
    state = {key: value for key, value in detector.state_dict().items() if ".blocks.5." not in key}
    torch.save({"model": state}, tmp_path / "half.pth")
    with pytest.raises(ValueError, match=r"12 missing.*(?s:.)*MODEL\.VIT\.ALLOW_PARTIAL_WEIGHTS"):
        Checkpointer(detector).resume_or_load(str(tmp_path / "half.pth"), resume=False)
    Checkpointer(detector, allow_partial=True).resume_or_load(str(tmp_path / "half.pth"), resume=False)


def test_other_classes_start_with_a_new_predictor(tiny_cfg, tmp_path):
    cfg = tiny_cfg().clone()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 11
    trained = build_model(cfg)
    Checkpointer(trained, str(tmp_path)).save("trained")
    detector = build_model(tiny_cfg())
    Checkpointer(detector).resume_or_load(str(tmp_path / "trained.pth"), resume=False)
    torch.testing.assert_close(detector.roi_heads.box_head.fc1.weight, trained.roi_heads.box_head.fc1.weight)
    with pytest.raises(ValueError, match="does not fit the model"):
        Checkpointer(detector).load(str(tmp_path / "trained.pth"))


def test_a_file_that_was_refused_does_not_stand_in_the_way_of_the_next(tmp_path):
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    Checkpointer(linear(1.0), str(tmp_path)).save("good")
    checkpointer = Checkpointer(linear())
    with pytest.raises(ValueError, match=r"bad\.pth"):
        checkpointer.load(str(tmp_path / "bad.pth"))
    checkpointer.load(str(tmp_path / "good.pth"))
    assert checkpointer.model.weight[0, 0] == 1.0
