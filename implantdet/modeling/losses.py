"""Classification losses of the part detector.

R: proposals of a batch; K: categories. A loss is a sum over proposals divided by R, as in Detectron2's
``FastRCNNOutputLayers``: every proposal of a batch counts the same, whether it is something or not, and an empty batch
gives 0. The focal loss is divided by the number of proposals that are something instead, of those that pass at once:
each part of ``SOLVER.ACCUMULATION_STEPS``, and each process, counts its own.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor
from torch.nn import functional as F

logger = logging.getLogger(__name__)

CLASS_WEIGHTINGS = ("none", "inverse_frequency", "effective_number", "given")


def weighted_cross_entropy(logits: Tensor, gt_classes: Tensor, class_weights: Tensor) -> Tensor:
    """Softmax cross-entropy in which a proposal counts as much as the weight of its category; background counts 1.

    Args:
        logits: (R, K + 1), background last.
        gt_classes: (R,), each in [0, K].
        class_weights: (K,).
    """
    weights = torch.cat([class_weights, class_weights.new_ones(1)])
    return F.cross_entropy(logits.float(), gt_classes, weights, reduction="sum") / max(len(logits), 1)


def multi_label_loss(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    class_weights: Tensor,
    elementwise: Callable[[Tensor, Tensor], Tensor],
    per_positive: bool = False,
) -> Tensor:
    """One yes-or-no question per category.

    Args:
        logits: (R, K).
        targets: (R, K), 0 or 1.
        weights: (R, K), 0 where there is no label.
        class_weights: (K,). They count for *yes* only (``pos_weight`` in PyTorch's words): each category has its own
            *no*, and a weight on both would leave their balance, which hurts rare categories, as it is.
        elementwise: loss of (R, K) logits and targets, unreduced.
        per_positive: divide by the number of proposals with a *yes* (at least 1) instead of R, as is right for the
            focal loss, in which the easy *no* of most proposals hardly counts (arXiv:1708.02002, section 4.1).
    """
    loss = elementwise(logits.float(), targets) * weights
    number = int((targets > 0).any(dim=1).sum()) if per_positive else len(logits)
    return (loss * torch.where(targets > 0, class_weights, 1.0)).sum() / max(number, 1)


def class_weights(
    weighting: str, num_classes: int, datasets: Sequence[str] = (), given: Sequence[float] = (), beta: float = 0.999
) -> Tensor:
    """Weights of the categories, (K,).

    Weights that are computed are scaled so that the mean over all annotations is 1: the labels as a whole keep their
    weight against the background, only their shares change. A category without annotations gets 1.

    Args:
        weighting: ``none`` (all 1), ``inverse_frequency`` (scikit-learn's *balanced*), ``effective_number``
            (Cui et al. 2019, arXiv:1901.05555: 1 / E with E = (1 − βⁿ) / (1 − β)), or ``given``.
        num_classes: K.
        datasets: registered training sets whose annotations are counted.
        given: the weights, if they are given.
        beta: β of the effective number, in [0, 1); 0 weighs all alike, → 1 is the inverse frequency.

    Raises:
        ValueError: the weights that are given are not K positive numbers, or there is no dataset to count.
    """
    if weighting == "none":
        return torch.ones(num_classes)
    if weighting == "given":
        if len(given) != num_classes or not all(isinstance(weight, Real) and 0 < weight < math.inf for weight in given):
            raise ValueError(
                f"MODEL.PART_HEAD.CLASS_WEIGHTS: expected {num_classes} positive numbers, one per class; found {given}"
            )
        return torch.tensor(given, dtype=torch.float32)
    if not datasets:
        raise ValueError(
            f"MODEL.PART_HEAD.CLASS_WEIGHTING: {weighting!r} counts the annotations of DATASETS.TRAIN, which is empty; "
            "name a registered dataset there, or give the weights (CLASS_WEIGHTING given)"
        )
    counts = count_annotations(datasets, num_classes)
    weights = inverse_frequency(counts) if weighting == "inverse_frequency" else effective_number(counts, beta)
    # The metadata is there after the annotations were counted.
    names = MetadataCatalog.get(datasets[0]).get("thing_classes", range(num_classes))
    for name, count, weight in zip(names, counts.tolist(), weights.tolist(), strict=True):
        logger.info("category %s: %d annotations, weight %.3f", name, count, weight)
    return weights


class ClassWeights:
    """``class_weights`` of these arguments, found when it is first called: a model that only predicts needs no data.

    Copies of a model share it, so that the training set is counted once.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._arguments = args, kwargs
        self._found: Tensor | None = None

    def __call__(self) -> Tensor:
        """(K,) on the CPU."""
        if self._found is None:
            args, kwargs = self._arguments
            self._found = class_weights(*args, **kwargs)
        return self._found

    def __deepcopy__(self, memo: dict[int, Any]) -> ClassWeights:
        return self


def count_annotations(datasets: Sequence[str], num_classes: int) -> Tensor:
    """Annotations of each category in registered datasets, (K,), without those of crowds."""
    counted = Counter(
        annotation["category_id"]
        for name in datasets
        for record in DatasetCatalog.get(name)
        for annotation in record.get("annotations", ())
        if not annotation.get("iscrowd")  # the mappers drop those
    )
    return torch.tensor([counted[index] for index in range(num_classes)], dtype=torch.float64)


def inverse_frequency(counts: Tensor) -> Tensor:
    """Weights from the numbers of annotations, see ``class_weights``."""
    return _with_mean_one(1 / counts, counts)


def effective_number(counts: Tensor, beta: float) -> Tensor:
    """Weights from the numbers of annotations, see ``class_weights``."""
    return _with_mean_one((1 - beta) / (1 - beta**counts), counts)


def _with_mean_one(weights: Tensor, counts: Tensor) -> Tensor:
    seen = counts > 0
    scale = counts.sum() / (weights * counts)[seen].sum()
    return torch.where(seen, weights * scale, 1.0).float()
