"""The stream of training data: fixed by seed and position, whatever serves it."""

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm

from implantdet.engine.loader import PositionSampler, SeededDataset, build_stream, seed_everything

NUM_IMAGES = 7
RECORDS = [
    {"image_id": index, "annotations": [{"category_id": 0 if index else 1}], "width": 8, "height": 8}
    for index in range(NUM_IMAGES)
]


def draw(record):
    """A mapper that uses all three generators."""
    return {"image_id": record["image_id"], "draws": (random.random(), np.random.rand(), torch.rand(()).item())}


def take(stream, num_batches):
    batches = list(itertools.islice(iter(stream), num_batches))
    return [(item["image_id"], item["draws"]) for batch in batches for item in batch]


@pytest.fixture
def cfg(tiny_cfg):
    return tiny_cfg("SOLVER.IMS_PER_BATCH", "4")


def test_seeds_are_reproducible_and_keys_unrelated():
    def draws(*key):
        seed_everything(*key)
        return random.random(), np.random.rand(), torch.rand(()).item()

    assert draws(0, 1) == draws(0, 1)
    keys = [(0, 1), (1, 0), (0, 2), (1, 1), (0, 1, 0, 1), (0, 2, 0, 1)]
    for stream in zip(*(draws(*key) for key in keys), strict=True):
        assert len(set(stream)) == len(keys)


def test_every_epoch_shows_every_image_once_with_new_draws(cfg):
    items = take(build_stream(cfg, RECORDS, draw, seed=0, start=0), 7)  # 28 images: four epochs
    for epoch in range(4):
        assert sorted(image_id for image_id, _ in items[7 * epoch : 7 * epoch + 7]) == list(range(NUM_IMAGES))
    assert len({draws for _, draws in items}) == 28


def test_order_and_draws_depend_on_the_seed(cfg):
    first, same, other = (take(build_stream(cfg, RECORDS, draw, seed, start=0), 3) for seed in (0, 0, 1))
    assert first == same
    assert first != other


@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_starting_in_the_middle_goes_on_as_if_never_stopped(tiny_cfg, sampler):
    cfg = tiny_cfg(
        "SOLVER.IMS_PER_BATCH", "4", "DATALOADER.SAMPLER_TRAIN", sampler, "DATALOADER.REPEAT_THRESHOLD", "0.5"
    )
    whole = take(build_stream(cfg, RECORDS, draw, seed=3, start=0), 6)
    rest = take(build_stream(cfg, RECORDS, draw, seed=3, start=4 * 4), 2)
    assert rest == whole[16:]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where there is one core
def test_number_of_workers_changes_nothing(tiny_cfg):
    streams = []
    for num_workers in ("0", "2"):
        cfg = tiny_cfg("SOLVER.IMS_PER_BATCH", "4", "DATALOADER.NUM_WORKERS", num_workers)
        streams.append(take(build_stream(cfg, RECORDS, draw, seed=0, start=8), 4))
    assert streams[0] == streams[1]


def test_processes_share_the_batches_of_one(monkeypatch):
    def positions(rank, world_size, count):
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
        sampler = PositionSampler(TrainingSampler(NUM_IMAGES, seed=5), start=8)
        return list(itertools.islice(iter(sampler), count))

    one = positions(0, 1, 12)
    first, second = positions(0, 2, 6), positions(1, 2, 6)
    assert [position for position, _ in one] == list(range(8, 20))
    assert [item for pair in zip(first, second, strict=True) for item in pair] == one


def test_rare_classes_are_repeated(tiny_cfg):
    # One image of seven has class 1: at threshold 1 it is shown sqrt(7) times as often.
    options = ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", "1.0")
    cfg = tiny_cfg("SOLVER.IMS_PER_BATCH", "4", *options)
    items = take(build_stream(cfg, RECORDS, draw, seed=0, start=0), 100)
    share = sum(image_id == 0 for image_id, _ in items) / len(items)
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(RECORDS, 1.0)
    assert share == pytest.approx(float(factors[0] / factors.sum()), abs=0.04)


def test_repeating_nothing_is_an_error(tiny_cfg):
    cfg = tiny_cfg("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler")
    with pytest.raises(
        ValueError, match=r"REPEAT_THRESHOLD: found 0\.0, with which RepeatFactorTrainingSampler repeats"
    ):
        build_stream(cfg, RECORDS, draw, seed=0, start=0)


def test_other_samplers_are_refused(tiny_cfg):
    cfg = tiny_cfg("DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler")
    with pytest.raises(ValueError, match=r"DATALOADER.SAMPLER_TRAIN: found 'RandomSubset.*expected TrainingSampler or"):
        build_stream(cfg, RECORDS, draw, seed=0, start=0)


def test_an_item_does_not_depend_on_those_before_it():
    dataset = SeededDataset(RECORDS, draw, seed=0)
    item = dataset[(5, 2)]
    dataset[(4, 1)]
    assert dataset[(5, 2)] == item
    assert dataset[(6, 2)] != item
    assert len(dataset) == NUM_IMAGES


def test_the_next_image_stands_in_for_one_that_cannot_be_used(cfg):
    def without(number):
        return lambda record: None if record["image_id"] == number else draw(record)

    everything, most = (
        [(image_id, draws) for image_id, draws in take(build_stream(cfg, RECORDS, mapper, seed=0, start=0), 7)]
        for mapper in (draw, without(2))
    )
    for (whole_id, whole_draws), (image_id, draws) in zip(everything, most, strict=True):
        assert image_id == (3 if whole_id == 2 else whole_id)
        assert draws == whole_draws  # the position decides
    with pytest.raises(ValueError, match="none of the 7 images can be used"):
        SeededDataset(RECORDS, lambda record: None, 0)[0, 0]


RARE = ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", "1.0")


def test_repeated_images_come_in_the_order_of_the_seed(tiny_cfg):
    streams = [build_stream(tiny_cfg("SOLVER.IMS_PER_BATCH", "4", *RARE), RECORDS, draw, s, start=0) for s in (0, 1)]
    ids = [[image_id for image_id, _ in take(stream, 6)] for stream in streams]
    assert ids[0] != ids[1]


def test_repeats_are_as_many_as_the_config_says(tiny_cfg):
    """One image of seven has the rare category, and counts seven times; the others, 7/6 times each."""
    cfg = tiny_cfg("SOLVER.IMS_PER_BATCH", "4", *RARE, "DATALOADER.REPEAT_SQRT", "False")
    items = take(build_stream(cfg, RECORDS, draw, seed=0, start=0), 100)
    assert sum(image_id == 0 for image_id, _ in items) / len(items) == pytest.approx(0.5, abs=0.06)
