"""The training data as one fixed stream: what stands at a position depends on the seed and the position alone.

Neither the number of workers, nor the number of processes, nor where a training was interrupted changes it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import Dataset, Sampler

Mapper = Callable[[dict[str, Any]], dict[str, Any] | None]


def seed_everything(*key: int) -> None:
    """Seed torch, NumPy and Python by a key, such as (seed, iteration): other keys give unrelated streams."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def kept_randomness() -> Iterator[None]:
    """What happens inside leaves the random numbers of torch, NumPy and Python as they were."""
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


class PositionSampler(Sampler[tuple[int, int]]):
    """Numbers the indices of an endless sampler of Detectron2, and can start in the middle.

    Args:
        sampler: yields the indices of this process: those at the positions rank, rank + world size, …
        start: first position that is yielded, over all processes; a multiple of their number.
    """

    def __init__(self, sampler: Sampler[int], start: int = 0) -> None:
        self.sampler = sampler
        self.start = start
        # Asked here, since the workers of a loader belong to no process group.
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Pairs of a position and the index of the image that stands there."""
        positions = itertools.count(self._rank, self._world_size)
        numbered = zip(positions, self.sampler, strict=False)
        return itertools.islice(numbered, self.start // self._world_size, None)


class SeededDataset(Dataset[dict[str, Any]]):
    """Maps the dataset dict at a position with generators that are seeded by the position.

    Args:
        dataset_dicts: in Detectron2's standard form.
        mapper: turns one of them into the model's input, drawing from NumPy's, Python's or torch's generator; or into
            None, and the next dataset dict takes the place.
        seed: seed of the stream.
    """

    def __init__(self, dataset_dicts: list[dict[str, Any]], mapper: Mapper, seed: int) -> None:
        self.dataset_dicts = dataset_dicts
        self.mapper = mapper
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset_dicts)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        position, index = key
        for step in range(len(self)):
            seed_everything(self.seed, position)
            mapped = self.mapper(self.dataset_dicts[(index + step) % len(self)])
            if mapped is not None:
                return mapped
        raise ValueError(f"none of the {len(self)} images can be used; the warnings above say why")


def build_stream(
    cfg: CfgNode, dataset_dicts: list[dict[str, Any]], mapper: Mapper, seed: int, start: int
) -> Iterable[list[dict[str, Any]]]:
    """Build the training loader.

    Args:
        cfg: ``DATALOADER`` and ``SOLVER.IMS_PER_BATCH`` are read.
        dataset_dicts: the training set.
        mapper: see ``SeededDataset``.
        seed: decides order and augmentation; the same in all processes.
        start: first position: the number of images that were trained on before.

    Raises:
        ValueError: ``DATALOADER.SAMPLER_TRAIN`` is none of the two that are supported, or has no threshold.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    sampler: Sampler[int]
    if name == "TrainingSampler":
        sampler = TrainingSampler(len(dataset_dicts), seed=seed)
    elif name == "RepeatFactorTrainingSampler":
        if cfg.DATALOADER.REPEAT_THRESHOLD <= 0:
            raise ValueError(
                f"DATALOADER.REPEAT_THRESHOLD: found {cfg.DATALOADER.REPEAT_THRESHOLD}, with which "
                "RepeatFactorTrainingSampler repeats nothing; expected the share of images below which a category "
                "counts as rare, such as 0.2"
            )
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset_dicts, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        sampler = RepeatFactorTrainingSampler(factors, seed=seed)
    else:
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN: found {name!r}, expected TrainingSampler or RepeatFactorTrainingSampler"
        )
    return build_detection_train_loader(
        SeededDataset(dataset_dicts, mapper, seed),
        mapper=None,
        sampler=PositionSampler(sampler, start),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        # Grouping buffers images of either shape, so a batch would depend on what came before the interruption.
        aspect_ratio_grouping=False,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
