"""What the benchmarks of pre-training compare and show; their measurements are no tests."""

import importlib

import pytest
from conftest import REPOSITORY
from detectron2.config import get_cfg

from implantdet.config import add_implantdet_config


@pytest.fixture
def benchmark(monkeypatch):
    """A function that imports a script of benchmarks/."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module


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
