"""What the benchmarks of pre-training count, compare and show; their measurements are no tests."""

import argparse
import importlib
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import REPOSITORY, write_idd
from detectron2.config import get_cfg
from torch import nn

from implantdet.assembly.known import KnownImplant
from implantdet.config import add_implantdet_config
from implantdet.data.idd import load_folds, load_idd, save_idd, write_json
from implantdet.engine.checkpoint import Checkpointer
from implantdet.engine.pretrainer import Pretrainer
from implantdet.engine.setup import setup
from implantdet.structures import Implant, Part, Reading


@pytest.fixture
def benchmark(monkeypatch):
    """A function that imports a script of benchmarks/."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module


class Attention(nn.Module):
    """Attention and nothing else: 3 heads, 5 tokens of 7 channels."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(3, 3, 5, 7))

    def forward(self, pixel_values):
        query, key, value = (self.qkv[:, None] * pixel_values).unbind(0)
        return SimpleNamespace(loss=nn.functional.scaled_dot_product_attention(query, key, value).sum())


def test_attention_is_counted(benchmark):
    """Two products of 2·3·5·5·7 operations forward, and two for each of them backward, for an image."""
    found = benchmark("mim_speed").gflop_per_image(Attention(), torch.ones(2, 1, 1, 1))
    assert found * 1e9 == pytest.approx((2 + 4) * 2 * 3 * 5 * 5 * 7)


def test_no_variant_of_pretraining_equals_its_config(benchmark):
    variants = benchmark("mim_comparison").INITS
    for name, (config, options) in variants.items():
        cfg = get_cfg()
        add_implantdet_config(cfg)
        cfg.merge_from_file(str(REPOSITORY / f"configs/{config}.yaml"))
        changed = cfg.clone()
        changed.merge_from_list(list(options))
        assert not options or changed != cfg, name
    assert list(benchmark("pretraining_page").INITS) == list(variants)


def test_the_small_pretraining_is_what_the_benchmark_measures(benchmark):
    """But for lengths, workers and folders."""
    module = benchmark("mim_comparison")
    cfgs = [get_cfg(), get_cfg()]
    for cfg, name in zip(cfgs, ("pretrain_mde_tiny", "pretrain_mde"), strict=True):
        add_implantdet_config(cfg)
        cfg.merge_from_file(str(REPOSITORY / f"configs/{name}.yaml"))
    cfgs[1].merge_from_list([str(item) for item in module.PRETRAIN["tiny"]])
    for key in ("MAX_EPOCHS", "WARMUP_EPOCHS", "EVAL_EPOCHS"):
        cfgs[1].SOLVER[key] = cfgs[0].SOLVER[key]
    cfgs[1].OUTPUT_DIR, cfgs[1].DATALOADER.NUM_WORKERS = cfgs[0].OUTPUT_DIR, cfgs[0].DATALOADER.NUM_WORKERS
    assert cfgs[0] == cfgs[1]


def test_how_often_a_training_is_saved_makes_no_other_training(benchmark):
    fingerprint = benchmark("_fingerprint").fingerprint
    config = "configs/pretrain_mde_tiny.yaml"
    assert fingerprint(config, ("SOLVER.CHECKPOINT_EPOCHS", 3.0)) == fingerprint(config)
    assert fingerprint(config, ("SOLVER.EVAL_EPOCHS", 3.0)) != fingerprint(config)
    # The distance counts for the method alone that reads it.
    other = ("ASSEMBLY.MERGE_DISTANCE", 2.0)
    assert fingerprint(config, other) == fingerprint(config)
    paper = ("ASSEMBLY.METHOD", "kmeans_paper")
    assert fingerprint(config, (*paper, *other)) != fingerprint(config, paper)


def test_recorded_runs_are_taken_where_nothing_differs(benchmark, tmp_path, monkeypatch):
    module = benchmark("mim_comparison")
    write_idd(tmp_path / "d")
    settings = {"size": "tiny", "epochs": [40.0], "finetune_epochs": 12.0, "val_images": None}
    asked = settings | {"name": "known", "data": [tmp_path / "d"], "inits": ["random", "mde"], "ratios": []}
    asked |= {"labels": [1.0]}
    monkeypatch.setattr(module, "RESULTS", tmp_path)

    def write():
        args = argparse.Namespace(**asked)
        runs = [
            {"dataset": "d", "init": v.name, "fold": 0, "seed": 0, "labels": share, "configs": configs}
            for v in module.variants(args)
            for share, configs in ((s, module.configs_of(args, tmp_path / "d", v)[: 1 + (s > 0)]) for s in (0.0, 1.0))
        ]
        (tmp_path / "known.json").write_text(json.dumps({"settings": settings, "runs": runs}), encoding="utf-8")

    def known(**changes):
        found = module.recorded(argparse.Namespace(**asked | changes))
        return [(init, labels) for _, init, _, _, labels in found]

    def refused(**changes):
        with pytest.raises(
            SystemExit, match=r"known\.json: holds \d runs of other .* such as .*; choose another --name"
        ):
            known(**changes)

    write()
    every = [("random", 0.0), ("random", 1.0), ("mde", 0.0), ("mde", 1.0)]
    assert known() == every
    refused(epochs=[200.0])
    refused(epochs=[200.0], inits=["mae"])  # MDE of 40 epochs does not compare with MAE of 200
    refused(finetune_epochs=10.0)
    refused(val_images=9)
    refused(size="base")
    assert known(inits=["mde"]) == known(inits=["mae"]) == every  # the others are compared with it
    assert known(ratios=[0.4]) == every
    write_idd(tmp_path / "e")
    assert known(data=[tmp_path / "e"], epochs=[200.0]) == every
    with_parts, without = (module.FINETUNE["tiny"][kind] for kind in (True, False))
    monkeypatch.setitem(module.FINETUNE, "tiny", {True: without, False: with_parts})
    refused()  # another detector
    refused(inits=["mde"])


def test_the_road_takes_no_results_of_another_config(benchmark, monkeypatch):
    module = benchmark("implant_road")
    args = argparse.Namespace(size="tiny", images=9, epochs=1.0, options=[], pretrain_epochs=1.0)
    before = [module.settings_of(args, init) for init in ("random", "mde")]
    assert before == [module.settings_of(args, init) for init in ("random", "mde")]
    monkeypatch.setitem(module.DETECT, "tiny", ("configs/idd_tiny.yaml", ("INPUT.PANORAMIC_ZOOM", 1.0)))
    assert all(module.settings_of(args, i) != old for i, old in zip(("random", "mde"), before, strict=True))


def test_reduced_data_keep_patients_whole_and_validation_the_same(benchmark, tmp_path):
    data = tmp_path / "data"
    write_idd(data, num_images=40)
    content = load_idd(data)
    for image in content["images"]:
        image["patient_id"] = f"patient{(image['id'] - 1) // 4}"
    save_idd(data, content)
    ids = sorted(image["id"] for image in content["images"])
    write_json(data / "folds.json", {"seed": 0, "group_by": "patient_id", "test": ids[32:], "folds": [
        ids[:12], ids[12:20], ids[20:28], ids[28:32]
    ]})  # fmt: skip
    reduced = benchmark("mim_comparison").reduced
    assert reduced(data, tmp_path, 0, 1.0, 0, None) is data

    folders = [reduced(data, tmp_path, 0, share, seed, 5) for share, seed in ((1.0, 0), (0.4, 0), (0.4, 1), (0.4, 2))]
    folds = [load_folds(folder, load_idd(folder)) for folder in folders]
    assert all(each["test"] == [] for each in folds)
    assert len({tuple(each["folds"][0]) for each in folds}) == 1
    assert len(folds[0]["folds"][0]) == 5
    assert set(folds[0]["folds"][0]) < set(ids[:12])
    assert folds[0]["folds"][1:] == [ids[12:20], ids[20:28], ids[28:32]]
    kept = [[i for part in each["folds"][1:] for i in part] for each in folds[1:]]
    assert all(len(each) == 8 for each in kept)  # two of five patients
    assert all((i - 1) // 4 * 4 + k in each for each in kept for i in each for k in range(1, 5))
    assert len(set(map(tuple, kept))) > 1
    images = [image["id"] for image in load_idd(folders[1])["images"]]
    assert sorted(images) == sorted(kept[0] + folds[1]["folds"][0])


def test_losses_of_a_finished_training(benchmark, tmp_path):
    rows = [{"total_loss": 9.0}] * 18 + [{"total_loss": 2.0}, {"lr": 0.1}, {"validation_loss": 4.0}]
    rows += [{"total_loss": 1.0}, {"validation_loss": 3.0}]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert benchmark("mim_comparison").losses(tmp_path) == {"train_loss": 1.5, "validation_loss": 3.0}


def test_a_comparison_is_complete_where_all_pairs_have_the_same_runs(benchmark):
    all_alike = benchmark("mim_comparison").all_alike
    runs = [("d", init, 0, seed, 1.0) for init in ("mae", "mde") for seed in (0, 1)]
    assert all_alike(runs)
    assert all_alike([*runs, ("e", "mde", 0, 0, 1.0)])
    assert not all_alike(runs[:3])
    assert not all_alike([*runs, ("d", "mde", 0, 0, 0.1)])


def test_a_training_that_fails_says_why_and_keeps_no_mark(benchmark, tmp_path):
    module, run = benchmark("_resumed"), tmp_path / "run"
    with pytest.raises(module.FailedTrainingError, match=r"configs/none\.yaml"):
        module.train_once(run, "configs/none.yaml", (), configs=["1"])
    assert not (run / "done").exists()
    (run / "done").touch()
    assert module.train_once(run, "configs/none.yaml", (), configs=["1"]) == run
    assert module.origin(run) == {"configs": ["1"], "commit": module.state_of_the_code()}
    with pytest.raises(module.FailedTrainingError, match="run: begun with other configs"):
        module.train_once(run, "configs/none.yaml", (), configs=["2"])


def test_a_training_that_goes_on_at_another_commit_names_both(benchmark, tmp_path, monkeypatch):
    module, run = benchmark("_resumed"), tmp_path / "run"
    for commit in ("abc", "def-dirty", "def-dirty"):
        monkeypatch.setattr(module, "state_of_the_code", lambda commit=commit: commit)
        with pytest.raises(module.FailedTrainingError, match=r"configs/none\.yaml"):
            module.train_once(run, "configs/none.yaml", (), configs=["1"])
    assert module.commit_of(run) == "abc def-dirty"


def test_an_edited_config_or_phantom_is_no_training_that_was_done(benchmark, tmp_path, monkeypatch):
    module, run = benchmark("_resumed"), tmp_path / "run"
    monkeypatch.setattr(module, "state_of_the_code", lambda: "abc")
    monkeypatch.setattr(module.subprocess, "run", lambda *args, **kwargs: None)
    monkeypatch.setattr(module, "fingerprint", lambda config, options: "1")
    module.train_once(run, "configs/a.yaml", ())
    module.train_once(run, "configs/a.yaml", ())
    monkeypatch.setattr(module, "fingerprint", lambda config, options: "2")
    with pytest.raises(module.FailedTrainingError, match="begun with other configs"):
        module.train_once(run, "configs/a.yaml", ())
    monkeypatch.setattr(module, "fingerprint", lambda config, options: "1")
    monkeypatch.setattr(module, "GENERATOR", module.GENERATOR + 1)
    with pytest.raises(module.FailedTrainingError, match="begun with other configs"):
        module.train_once(run, "configs/a.yaml", ())
    (run / "begun.json").unlink()
    with pytest.raises(module.FailedTrainingError, match="nothing tells what it was begun with"):
        module.train_once(run, "configs/a.yaml", ())


def test_the_page_compares_no_psnr_of_other_masks(benchmark):
    runs = [
        {"dataset": "d", "init": init, "fold": 0, "seed": seed, "labels": 0.0, "commit": "abc"}
        | {"configs": ["1", "2"], "features_linear": 50.0 + seed * (init == "mde"), "reconstruction_PSNR": 20.0 + seed}
        for init in ("mae", "mde")
        for seed in (0, 1)
    ]
    summary = benchmark("mim_comparison").summarise(runs)
    page = benchmark("pretraining_page")
    tables = page.summary_table(summary, 0.0, ["mae", "mde"]) + page.differences_table(summary, 0.0)
    assert "linear probe" in tables and "MDE, our default − MAE" in tables
    assert "PSNR" not in tables and "dB" not in tables


def test_the_page_tells_where_an_init_has_fewer_runs(benchmark):
    page = benchmark("pretraining_page")
    inits = {"mae": {"mean": 1.0, "sd": 0.5, "runs": 2}, "mde": {"mean": 2.0, "sd": 0.5, "runs": 3}}
    assert [page.cell(inits, init) for init in ("mae", "mde", "random")] == ["1.0 ± 0.5 (of 2)", "2.0 ± 0.5", "–"]


def test_every_setting_of_the_ablation_adds_one_thing_to_its_base(benchmark):
    ablation = benchmark("head_ablation")
    options, base_of = ablation.settings()
    added = {**ablation.STEPS, **ablation.BESIDE}
    assert list(options) == list(added)
    assert set(base_of) == set(added) - {"stock softmax head"}
    for name, base in base_of.items():
        assert options[name] == [*options[base], *added[name]]
    assert {base_of[name] for name in ablation.BESIDE} == {"multi-label sigmoid"}


def test_differences_are_to_the_base_that_is_given(benchmark, monkeypatch, tmp_path):
    runs = benchmark("head_runs")
    ap = {"a": 10.0, "b": 12.0, "c": 17.0}
    axes = {"axis": {"accuracy": 50.0}}
    monkeypatch.setattr(runs, "ground_truth", lambda data, part: {})
    monkeypatch.setattr(runs, "detect", lambda run, data, part: run.name)
    monkeypatch.setattr(runs, "commit_of", lambda run: "abc")
    monkeypatch.setattr(runs, "metrics", lambda truth, found: {"AP": ap[found]})
    monkeypatch.setattr(runs, "axis_accuracy", lambda truth, found: axes)
    trainings = {(name, seed): lambda name=name: tmp_path / name for name in ap for seed in (0, 1)}
    before = runs.compared(trainings, tmp_path, "test")
    first = runs.compared(trainings, tmp_path, "test", {"b": "a", "c": "a"})
    assert [before["c"]["base"], first["c"]["base"]] == ["b", "a"]
    assert [table["c"]["difference"]["AP"]["mean"] for table in (before, first)] == [5.0, 7.0]
    assert "difference" not in first["a"]


def test_axes_and_the_rarest_parts_by_hand(benchmark):
    """Three middle thirds: read rightly, read wrongly (though a weaker reading is right), and not found."""
    runs = benchmark("head_runs")
    names = ("middle.body.straight", "middle.body.tapered", "middle.thread.square", "ITI")
    groups = ("middle", "middle", "middle", "system")
    trained = (50, 5, 20, 70)
    categories = [
        {"id": k, "name": name, "supercategory": group, "num_train": number}
        for k, (name, group, number) in enumerate(zip(names, groups, trained, strict=True), start=1)
    ]

    def box(image, category, **more):
        return {"image_id": image, "category_id": category, "bbox": [10.0, 10.0, 20.0, 30.0], **more}

    truth = {"images": [{"id": k, "width": 50, "height": 50} for k in (1, 2, 3)], "categories": categories}
    labels = [(1, 1), (1, 4), (2, 1), (2, 3), (3, 1), (3, 2)]
    truth["annotations"] = [
        box(image, category, id=k, area=600.0, iscrowd=0) for k, (image, category) in enumerate(labels, start=1)
    ]
    found = [box(1, 1, score=0.9), box(1, 4, score=0.9), box(2, 2, score=0.8), box(2, 1, score=0.3)]
    axes = runs.axis_accuracy(truth, found)
    # Of the first two thirds; both are straight.
    assert (axes["middle.body"]["answered"], axes["middle.body"]["accuracy"]) == (100, 50)
    assert (axes["middle.thread"]["answered"], axes["middle.thread"]["accuracy"]) == (0, 0)
    metrics = runs.metrics(truth, found)
    assert metrics["implant_AP50"] == pytest.approx(100)
    # 2 of 3 straight thirds are found, above nothing false: a precision of 1 up to the 67th of 101 recalls.
    assert metrics["part_AP50"] == pytest.approx(100 * 67 / 101 / 3)
    assert metrics["rare_part_AP50"] == 0  # the rarest of three


def test_figure_4_leaves_the_runs_as_they_are(benchmark, idd_root, tmp_path, monkeypatch):
    options = ["DATASETS.ROOT", str(idd_root), "DATASETS.NAME", "figure", "OUTPUT_DIR", str(tmp_path / "run")]
    options += ["DATASETS.TRAIN", "('figure_train_fold0',)", "DATASETS.TEST", "('figure_val_fold0',)"]
    config = str(REPOSITORY / "configs/pretrain_mde_smoke.yaml")
    cfg = setup(argparse.Namespace(config_file=config, opts=options, eval_only=False))
    Checkpointer(Pretrainer.build_model(cfg), cfg.OUTPUT_DIR).save("model_final")
    own = [tmp_path / "run" / f"reconstruction.{suffix}" for suffix in ("json", "png")]
    for path in own:
        path.write_text("of the run itself", encoding="utf-8")
    for module in ("_record", "mim_figure4"):
        monkeypatch.setattr(benchmark(module), "RESULTS", tmp_path / "results")
    run = str(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["mim_figure4.py", run, run, "--mask-ratio", "0.5"])
    benchmark("mim_figure4").main()
    assert [path.read_text(encoding="utf-8") for path in own] == ["of the run itself"] * 2
    written = json.loads((tmp_path / "results/mim_figure4.json").read_text(encoding="utf-8"))
    for kind in ("", "embeddings_"):
        assert written[f"MAE_{kind}psnr_db"] == written[f"MDE_{kind}psnr_db"] > 0
    assert written["flat_psnr_db"] > 0
    page = benchmark("pretraining_page")
    monkeypatch.setattr(page, "read", lambda name: written)
    assert "MDE by embeddings" in page.figure_section()[1]
    assert (tmp_path / "results/mim_figure4.png").is_file()


def test_the_curve_keeps_runs_of_the_same_settings(benchmark, tmp_path, monkeypatch):
    module = benchmark("head_curve")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    asked = {"images": 40, "config": "configs/opg_smoke.yaml", "options": ["SEED", 1], "passes": 24}
    settings = module.settings_of(argparse.Namespace(**asked))
    assert module.recorded(settings) == {}
    curve = {
        8: {"by_seed": {0: {"part_AP": 1.0}, 2: {"part_AP": 3.0}}, "commits": {0: "abc", 2: "def"}},
        30: {"by_seed": {0: {"part_AP": 2.0}}, "commits": {0: "abc"}},
    }
    write_json(tmp_path / "head_curve.json", settings | {"by_training_images": curve, "record": {}})
    runs = {
        (8, 0): ({"part_AP": 1.0}, "abc"),
        (8, 2): ({"part_AP": 3.0}, "def"),
        (30, 0): ({"part_AP": 2.0}, "abc"),
    }
    assert module.recorded(settings) == runs
    for changes in ({"images": 41}, {"config": "configs/idd_smoke.yaml"}, {"options": []}, {"passes": 25}):
        assert module.recorded(module.settings_of(argparse.Namespace(**asked | changes))) == {}


def test_a_third_that_took_in_a_false_one_is_not_grouped_exactly(benchmark):
    """The false third is a rival of the true one's reading: both are in the implant."""
    module = benchmark("assembly_grouping")
    box = (0.0, 0.0, 20.0, 20.0)
    thirds = [(0, "coronal", box, {"coronal.level": "bone"}), (None, "coronal", box, {"coronal.level": "tissue"})]
    readings = Reading("coronal.level", "bone", 1.0, 0), Reading("coronal.level", "tissue", 1.0, 1)
    for rivals, is_exact in (((), True), (readings[1:], False)):
        found = Implant((Part("coronal", box, 1.0, readings[:1], rivals),), None, box, 1.0)
        (told,) = module.compare([found], thirds, [0, 1], [KnownImplant({"coronal": box})])
        assert told == (is_exact, 1.0)
