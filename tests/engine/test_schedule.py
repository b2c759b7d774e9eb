"""Epochs to iterations, by hand."""

import pytest
from detectron2.config import get_cfg

from implantdet.config import add_implantdet_config
from implantdet.engine.schedule import Lengths, lengths_in_iterations, with_lengths


@pytest.mark.parametrize(
    ("num_images", "ims_per_batch", "epochs", "expected"),
    [
        (100, 10, (3, 1, 1), Lengths(30, 10, 10, 10)),
        (743, 4, (28, 1, 4), Lengths(5201, 186, 743, 743)),  # 185.75 iterations per epoch
        (3342, 16, (100, 10, 5, 0), Lengths(20888, 2089, 1044, 1044)),  # 208.875
        (3342, 16, (100, 10, 5, 2), Lengths(20888, 2089, 1044, 418)),
        (3342, 16, (100, 10, 5, 6), Lengths(20888, 2089, 1044, 1044)),
        (4, 4, (500, 0, 1000), Lengths(500, 0, 500, 500)),  # evaluated once, at the end
        (4, 4, (500, 0, 500, 1000), Lengths(500, 0, 500, 500)),
        (2, 16, (1, 0, 1, 0.1), Lengths(1, 0, 1, 1)),  # less than one batch
    ],
)
def test_lengths(num_images, ims_per_batch, epochs, expected):
    assert lengths_in_iterations(num_images, ims_per_batch, *epochs) == expected


@pytest.mark.parametrize(
    ("epochs", "message"),
    [
        ((0.0, 0.0, 1.0), r"SOLVER.MAX_EPOCHS must be > 0; found 0.0"),
        ((5.0, 5.0, 1.0), r"SOLVER.WARMUP_EPOCHS must be in \[0, MAX_EPOCHS = 5.0\); found 5.0"),
        ((5.0, -1.0, 1.0), r"SOLVER.WARMUP_EPOCHS .* found -1.0"),
        ((5.0, 1.0, 0.0), r"SOLVER.EVAL_EPOCHS must be > 0; found 0.0"),
        ((5.0, 1.0, 1.0, -1.0), r"SOLVER.CHECKPOINT_EPOCHS must be >= 0; found -1.0"),
    ],
)
def test_lengths_out_of_range(epochs, message):
    with pytest.raises(ValueError, match=message):
        lengths_in_iterations(10, 2, *epochs)


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.SOLVER.IMS_PER_BATCH = 5
    return cfg


def test_config_is_filled_in_and_the_given_one_left_alone(cfg):
    filled = with_lengths(cfg, num_images=50)  # 100 epochs, 10 to warm up, evaluated every 5
    assert (filled.SOLVER.MAX_ITER, filled.SOLVER.WARMUP_ITERS) == (1000, 100)
    assert filled.SOLVER.CHECKPOINT_PERIOD == filled.TEST.EVAL_PERIOD == 50
    cfg.SOLVER.CHECKPOINT_EPOCHS = 2.0
    filled = with_lengths(cfg, num_images=50)
    assert (filled.SOLVER.CHECKPOINT_PERIOD, filled.TEST.EVAL_PERIOD) == (20, 50)
    assert filled.is_frozen()
    assert cfg.SOLVER.MAX_ITER == get_cfg().SOLVER.MAX_ITER


@pytest.mark.parametrize(
    "key", ["SOLVER.MAX_ITER", "SOLVER.WARMUP_ITERS", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD"]
)
def test_iterations_by_hand_are_refused(cfg, key):
    cfg.merge_from_list([key, 123])
    with pytest.raises(ValueError, match=rf"{key} is 123, but .* set SOLVER.MAX_EPOCHS"):
        with_lengths(cfg, num_images=50)
