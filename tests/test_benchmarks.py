"""What the benchmarks of pre-training count, compare and show; their measurements are no tests."""

import argparse
import importlib
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import REPOSITORY
from detectron2.config import get_cfg
from torch import nn

from implantdet.config import add_implantdet_config
from implantdet.engine.checkpoint import Checkpointer
from implantdet.engine.pretrainer import Pretrainer
from implantdet.engine.setup import setup


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


def test_features_are_probed_at_the_size_that_the_detector_sees(benchmark):
    comparison = benchmark("mim_comparison")

    def size_of(options):
        return dict(zip(options[::2], options[1::2], strict=True))["INPUT.MIN_SIZE_TEST"]

    assert size_of(comparison.PRETRAIN["tiny"]) == size_of(comparison._TINY)


def test_the_page_compares_no_psnr_of_other_masks(benchmark):
    runs = [
        {"dataset": "d", "init": init, "fold": 0, "seed": seed, "labels": 0.0}
        | {"features_linear": 50.0 + seed * (init == "mde"), "reconstruction_PSNR": 20.0 + seed}
        for init in ("mae", "mde")
        for seed in (0, 1)
    ]
    summary = benchmark("mim_comparison").summarise(runs)
    page = benchmark("pretraining_page")
    tables = page.summary_table(summary, 0.0, ["mae", "mde"]) + page.differences_table(summary, 0.0)
    assert "linear probe" in tables and "MDE, our default − MAE" in tables
    assert "PSNR" not in tables and "dB" not in tables


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
    assert written["MAE_psnr_db"] == written["MDE_psnr_db"] > 0
    assert (tmp_path / "results/mim_figure4.png").is_file()
