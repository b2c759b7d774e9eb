"""The door, as a user runs it: train, evaluate, kill and resume, and several processes on the CPU."""

import importlib.util
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, tiny_dataset, write_idd
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage

from implantdet.assembly.geometry import iou
from implantdet.cli import main
from implantdet.config import add_implantdet_config
from implantdet.data.register import register_idd
from implantdet.engine.loader import seed_everything
from implantdet.engine.pretrainer import Pretrainer
from implantdet.engine.trainer import Trainer
from implantdet.modeling.weights import local_checkpoint
from implantdet.structures import checked_scale

TWO_EPOCHS = ("SOLVER.MAX_EPOCHS", "2.0", "SOLVER.EVAL_EPOCHS", "1.0")  # six iterations
# Without sampling, and with as many proposals in every image, a mean over two halves of a batch is its mean.
NOTHING_SAMPLED = (
    *("MODEL.MASK_ON", "False", "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", "False"),
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "4096", "MODEL.RPN.NMS_THRESH", "1.0", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20"),
)


def command(*arguments, config="opg_smoke"):
    config = str(REPOSITORY / f"configs/{config}.yaml")
    return [sys.executable, str(REPOSITORY / "train_net.py"), "--config-file", config, *map(str, arguments)]


def environment(processes=1):
    # The number of threads decides the order of sums, so the last bits. Several processes share the threads.
    return os.environ | {"OMP_NUM_THREADS": str(processes * torch.get_num_threads())}


def run(*arguments, processes=1, config="opg_smoke"):
    arguments = command("--num-gpus", processes, "--dist-url", "auto", *arguments, config=config)
    done = subprocess.run(arguments, env=environment(processes), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def train_here(cfg):
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()


def checkpoint(folder, name="model_final"):
    return torch.load(folder / f"{name}.pth", weights_only=True)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def last_metrics(folder):
    lines = (folder / "metrics.json").read_text(encoding="utf-8").splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


def test_a_killed_training_is_resumed_and_evaluated(idd_root, tiny_cfg, tmp_path):
    """SIGKILL right after the first checkpoint; resumed, it ends with the bits of a training that ran through."""
    killed, whole = tmp_path / "killed", tmp_path / "out"
    options = (*tiny_dataset(idd_root), *TWO_EPOCHS)
    process = subprocess.Popen(
        command(*options, "OUTPUT_DIR", killed), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        # The tag is written after the checkpoint, and a resume goes by the tag.
        while not (killed / "last_checkpoint").exists() or not (killed / "last_checkpoint").read_text():
            assert process.poll() is None, "ended before its first checkpoint"
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert not (killed / "model_final.pth").exists()
    log = run("--resume", *options, "OUTPUT_DIR", killed)
    assert "Starting training from iteration 3" in log
    for part in ("eta:", "total_loss:", "images_per_second:", "Evaluation results for bbox"):
        assert part in log
    train_here(tiny_cfg(*TWO_EPOCHS))
    torch.testing.assert_close(checkpoint(killed)["model"], checkpoint(whole)["model"], rtol=0, atol=0)

    weights = ("MODEL.WEIGHTS", killed / "model_final.pth")
    run("--eval-only", *options, *weights, "OUTPUT_DIR", tmp_path / "evaluated")
    assert read(tmp_path / "evaluated/results.json") == read(whole / "results.json")


def test_two_processes_train_and_evaluate_like_one(idd_root, tiny_cfg, tmp_path):
    two, one = tmp_path / "two", tmp_path / "out"
    options = (*TWO_EPOCHS, *NOTHING_SAMPLED, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0")
    run(*tiny_dataset(idd_root), *options, "OUTPUT_DIR", two, processes=2)
    cfg = tiny_cfg(*options)
    train_here(cfg)
    for key in ("total_loss", "loss_rpn_loc", "validation_loss"):
        assert last_metrics(two)[key] == pytest.approx(last_metrics(one)[key], rel=1e-4), key
    # AdamW blows rounding up where a gradient is zero (biases of keys), so the averages of the gradients are compared.
    states = [checkpoint(folder)["trainer"]["_trainer"]["optimizer"]["state"] for folder in (two, one)]
    for state, expected in zip(*(state.values() for state in states), strict=True):
        torch.testing.assert_close(state["exp_avg"], expected["exp_avg"], rtol=1e-3, atol=1e-5)

    # One process finds the same with the weights of the two, detection by detection.
    expected = read(two / "results.json"), read(two / "coco_instances_results.json")
    weights = ("MODEL.WEIGHTS", str(two / "model_final.pth"))
    Trainer.evaluate(tiny_cfg(*options, *weights))
    assert (read(one / "results.json"), read(one / "coco_instances_results.json")) == expected
    assert len(expected[1]) > 20


def test_two_processes_pretrain_each_with_its_own_masks(idd_root, untrained, tmp_path):
    """After one step, the moments of AdamW hold the mean of what each process finds under its own seed."""
    options = [*map(str, tiny_dataset(idd_root)), "SOLVER.IMS_PER_BATCH", "2"]
    options += ["SOLVER.MAX_EPOCHS", "0.1", "SOLVER.CLIP_GRADIENTS.ENABLED", "False", "MODEL.MIM.EMA_DECAY", "0.5"]
    run(*options, "OUTPUT_DIR", tmp_path / "two", config="pretrain_mde_smoke", processes=2)
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.merge_from_file(str(REPOSITORY / "configs/pretrain_mde_smoke.yaml"))
    cfg.merge_from_list([*options, "OUTPUT_DIR", str(tmp_path / "one")])
    (tmp_path / "one").mkdir()
    register_idd(idd_root, cfg.DATASETS.NAME)
    trainer = untrained(cfg)
    assert trainer.max_iter == 1
    trainer.before_train()
    model = trainer.checkpointer.model
    losses = []
    with EventStorage():
        for rank, image in enumerate(next(iter(trainer.data_loader))):
            seed_everything(cfg.SEED, 0, rank, 1)
            losses.append(sum(model([image]).values()) / 2)
    sum(losses).backward()
    assert losses[0] != losses[1]
    found = checkpoint(tmp_path / "two")["trainer"]["_trainer"]["optimizer"]["state"]
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    beta = trainer.optimizer.param_groups[0]["betas"][0]
    assert len(found) == len(parameters) > 20
    for index, parameter in enumerate(parameters):
        torch.testing.assert_close(found[index]["exp_avg"] / (1 - beta), parameter.grad, rtol=1e-3, atol=1e-5)
    # The teacher follows the step that all processes took together.
    weights = checkpoint(tmp_path / "two")["model"]
    for name in ("blocks.0.mlp.fc1.weight", "blocks.0.attn.qkv.weight"):
        before = model.encoder.state_dict()[name]
        after = weights[f"backbone.net.{name}"]
        torch.testing.assert_close(weights[f"target.teacher.{name}"], (before + after) / 2, rtol=0, atol=1e-6)
    # One process evaluates these weights alike.
    cfg.merge_from_list(["MODEL.WEIGHTS", str(tmp_path / "two/model_final.pth")])
    Pretrainer.evaluate(cfg)
    of_one, of_two = (read(tmp_path / number / "reconstruction.json") for number in ("one", "two"))
    assert of_one["num_images"] == of_two["num_images"] == 2
    assert of_two["reconstruction"] == pytest.approx(of_one["reconstruction"])


def test_a_folder_of_radiographs_is_pretrained_on(idd_root, tmp_path):
    """The line in the door's docstring, where there is no dataset."""
    options = ("DATASETS.IMAGE_FOLDER", idd_root / "images", "DATASETS.TEST", "()", "DATASETS.ROOT", tmp_path / "none")
    log = run(*options, "OUTPUT_DIR", tmp_path / "out", config="pretrain_mde_smoke")
    assert "10 images without labels; left out as test images: 0" in log
    assert "no image is left out as a test image, since no dataset idd_test is registered" in log
    assert (tmp_path / "out/model_final.pth").is_file()


def test_help_lists_detectron2s_arguments():
    text = run_help()
    for argument in ("--config-file", "--eval-only", "--resume", "--num-gpus", "--num-machines", "--dist-url", "opts"):
        assert argument in text


def run_help():
    return subprocess.run([*command(), "--help"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("SOLVER.MAX_EPOCH", 3, "option: no key SOLVER.MAX_EPOCH; did you mean SOLVER.MAX_EPOCHS?"),
        ("MODEL.WEIGHTS", "no.pth", "no.pth: no such file; MODEL.WEIGHTS is a .pth file, a URL, or timm://<name>"),
    ],
)
def test_what_the_user_got_wrong_is_told_in_one_line(key, value, told):
    done = subprocess.run(command(key, value), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith(f"train_net.py: {told}\n")


def test_what_shows_only_when_the_training_is_built_is_told_in_one_line(idd_root, tmp_path):
    options = ("DATASETS.ROOT", idd_root, "OUTPUT_DIR", tmp_path / "out", "SOLVER.MAX_EPOCHS", "-1.0")
    done = subprocess.run(command(*options), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith("train_net.py: SOLVER.MAX_EPOCHS must be > 0; found -1.0\n")


def test_one_of_several_processes_ends_at_once(monkeypatch, tmp_path):
    """Without Python's end, in which a thread of gloo may end in SIGABRT after a training that went well."""
    spec = importlib.util.spec_from_file_location("train_net", REPOSITORY / "train_net.py")
    door = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(door)
    done = []
    monkeypatch.setattr(door, "main", lambda args: done.append("main"))
    monkeypatch.setattr(door.atexit, "_run_exitfuncs", lambda: done.append("exit functions"))
    monkeypatch.setattr(door.os, "_exit", done.append)
    door.run_as_process(None)  # alone, without a group
    assert done == ["main"]
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        door.run_as_process(None)
    finally:
        torch.distributed.destroy_process_group()
    assert done == ["main", "main", "exit functions", 0]


def test_only_what_our_code_refuses_comes_without_a_traceback(monkeypatch):
    spec = importlib.util.spec_from_file_location("train_net", REPOSITORY / "train_net.py")
    door = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(door)
    monkeypatch.setattr(door, "setup", lambda args: None)
    monkeypatch.setattr(door, "run", lambda cfg, args: checked_scale(-1))
    with pytest.raises(SystemExit, match=r"^train_net\.py: mm_per_pixel: found -1, expected"):
        door.main(None)
    monkeypatch.setattr(door, "run", lambda cfg, args: local_checkpoint("no.pth"))  # what --resume did not look for
    with pytest.raises(SystemExit, match=r"^train_net\.py: no\.pth: no such file"):
        door.main(None)
    monkeypatch.setattr(door, "run", lambda cfg, args: iou(np.ones((2, 4)), np.ones((3, 4))))
    with pytest.raises(ValueError, match="broadcast"):  # a bug of ours
        door.main(None)


def test_parts_are_trained_assembled_and_predicted(tmp_path, capsys):
    root, out = write_idd(tmp_path / "implants", num_images=40), tmp_path / "out"
    said = run(*tiny_dataset(root), "OUTPUT_DIR", out, config="idd_smoke")
    assert "Starting training" in said
    assert not any(advice in said for advice in ("is_fx_tracing", "torch.meshgrid"))  # nobody can follow it
    assert read(out / "tiny_implants_test/results.json")["implants"]["num_implants"] == 12

    # Two processes put together what one found, implant by implant.
    weights = ("MODEL.WEIGHTS", out / "model_final.pth", "DATASETS.TEST", "('tiny_implants_test',)")
    two = ("OUTPUT_DIR", tmp_path / "two")
    run("--eval-only", *tiny_dataset(root), *weights, *two, config="idd_smoke", processes=2)
    assert read(tmp_path / "two/implants.json") == read(out / "tiny_implants_test/implants.json")
    found, expected = (
        read(folder / "results.json")["implants"] for folder in (tmp_path / "two", out / "tiny_implants_test")
    )
    for figures in (found, expected):
        assert figures["stage1"].pop("fps") > 0
        assert figures["stage2"].pop("fps") > 0
    assert found == expected

    radiographs = sorted((root / "images").iterdir())[:1]
    options = ["--min-score", "0.5", "--mm-per-pixel", "0.1", "--modality", "panoramic"]
    assert main(["predict", *map(str, [out, *radiographs, "--out", tmp_path / "found"]), *options]) == 0
    assert "found: 1 picture, index.html to look at them, and implants.json." in capsys.readouterr().out
    assert [image["file_name"] for image in read(tmp_path / "found/implants.json")["images"]] == list(
        map(str, radiographs)
    )

    (out / "model_final.pth").rename(out / "model.pth")
    assert main(["predict", *map(str, [out, *radiographs, "--out", tmp_path / "again"])]) == 1
    assert "model_final.pth: no such file; expected the OUTPUT_DIR of a training" in capsys.readouterr().err
