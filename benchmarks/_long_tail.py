"""Two losses for long tails, to compare with: under both, frequent categories say *no* to rare ones less strongly."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import Instances
from torch import Tensor

from implantdet.modeling.implant_roi_heads import ImplantROIHeads
from implantdet.modeling.losses import count_annotations
from implantdet.modeling.multi_label import CategoryTable
from implantdet.modeling.part_predictor import PartPredictor


class LongTailPredictor(PartPredictor):
    """A ``PartPredictor`` that knows how often each category is annotated."""

    train_datasets: tuple[str, ...] = ()

    @cached_property
    def counts(self) -> Tensor:
        """Annotations of each category, (K,), at least 1."""
        return count_annotations(self.train_datasets, self.num_classes).float().clamp(min=1)


class FederatedPredictor(LongTailPredictor):
    """*No* counts for the categories that a batch shows and for others that are drawn, until they are half of all.

    Drawn by the square root of their frequency, as by Detectron2, whose draw this is (Zhou et al. 2021,
    arXiv:2103.07461, after the federated annotation of LVIS).
    """

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """The losses, without the labels *no* that do not count."""
        targets = cat([proposal.gt_labels for proposal in proposals])
        counting = torch.where(targets > 0, 1.0, self.counting(targets))
        for proposal, part in zip(proposals, counting.split([len(p) for p in proposals]), strict=True):
            proposal.gt_label_weights = proposal.gt_label_weights * part
        return super().losses(predictions, proposals)

    def counting(self, targets: Tensor) -> Tensor:
        """1 for the categories whose *no* counts, 0 for the others, (K,), from targets (R, K)."""
        shown = targets.any(dim=0).nonzero().flatten()
        chosen = self.get_fed_loss_classes(shown, self.num_classes // 2, self.num_classes, self.counts.sqrt())
        return targets.new_zeros(self.num_classes).index_fill(0, chosen, 1.0)


class SeesawPredictor(LongTailPredictor):
    """*No* is softened for a category rarer than the right one of its axis, and sharpened where it scores higher.

    The mitigation and compensation of the seesaw loss (Wang et al. 2021, arXiv:2008.10032, equations 4 to 6, with its
    exponents 0.8 and 2), put on sigmoids: the values of one axis, and the systems, compete; others do not. As there,
    they multiply the exponential of the rival's logit, not its loss, whose gradient thus stays bounded.
    """

    @cached_property
    def rivals(self) -> Tensor:
        """(K, K), 1 for two categories of one axis, or two systems."""
        table = CategoryTable.of_dataset(self.train_datasets[0], self.num_classes)
        is_system = table.is_system.float()
        return table.category_axis @ table.category_axis.T + is_system[:, None] * is_system

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """The losses, *no* of logits that the logarithm of the factors is added to."""
        logits, deltas = predictions
        targets = cat([proposal.gt_labels for proposal in proposals])
        factors = self.factors(logits[:, :-1].detach().float(), targets)
        shifted = logits[:, :-1] + torch.where(targets > 0, 0.0, factors.clamp(min=1e-6).log())
        return super().losses((torch.cat([shifted, logits[:, -1:]], dim=1), deltas), proposals)

    def factors(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Product of mitigation and compensation, (R, K), from logits and targets (R, K); 1 where no rival is right."""
        mitigation = (self.counts / self.counts[:, None]).clamp(max=1) ** 0.8  # of the right one (row) on a rival
        softened = (1 + targets @ (self.rivals * (mitigation - 1))).clamp(min=0)
        scores = logits.sigmoid()
        right = ((targets * scores) @ self.rivals).clamp(min=0.01)
        sharpened = torch.where(targets @ self.rivals > 0, (scores / right).clamp(min=1) ** 2, 1.0)
        return softened * sharpened


class _LongTailROIHeads(ImplantROIHeads):
    predictor: type[LongTailPredictor]

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        arguments = super()._init_box_head(cfg, input_shape)
        predictor = cls.predictor(cfg, arguments["box_head"].output_shape)
        predictor.train_datasets = cfg.DATASETS.TRAIN
        return arguments | {"box_predictor": predictor}


@ROI_HEADS_REGISTRY.register()
class FederatedROIHeads(_LongTailROIHeads):
    """``ImplantROIHeads`` with a ``FederatedPredictor``."""

    predictor = FederatedPredictor


@ROI_HEADS_REGISTRY.register()
class SeesawROIHeads(_LongTailROIHeads):
    """``ImplantROIHeads`` with a ``SeesawPredictor``."""

    predictor = SeesawPredictor
