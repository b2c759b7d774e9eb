"""The Trainer for pre-training without labels: other images in, other measures out, and a target that follows."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluators
from torch import Tensor, nn

from implantdet.data.dataset_mapper import RadiographMapper
from implantdet.data.unlabelled import LeaveOutUnreadable, UnlabelledMapper, unlabelled_dicts
from implantdet.engine.checkpoint import Checkpointer
from implantdet.engine.collapse_guard import CollapseGuard
from implantdet.engine.setup import needs_no_labels
from implantdet.engine.trainer import Trainer, warn_of_zoom
from implantdet.evaluation.features import FeatureEvaluator
from implantdet.evaluation.reconstruction import ReconstructionEvaluator
from implantdet.modeling.masked_image_model import MaskedImageModel
from implantdet.modeling.mim_targets import PixelTarget
from implantdet.modeling.weights import TIMM_SCHEME, read_checkpoint


class Pretrainer(Trainer):
    """Trains a ``MaskedImageModel`` on ``unlabelled_dicts(cfg)``; its last checkpoint is the result.

    Evaluation on ``DATASETS.TEST`` draws reconstructions and probes the features of labelled boxes.
    """

    @classmethod
    def build_dataset_dicts(cls, cfg: CfgNode) -> list[dict[str, Any]]:
        """Images without labels, and without those that are tested on."""
        return unlabelled_dicts(cfg)

    @classmethod
    def build_mapper(cls, cfg: CfgNode, dataset_dicts: list[dict[str, Any]]) -> LeaveOutUnreadable:
        """Crops to the size that positions are stored for, and flips."""
        warn_of_zoom(cfg, dataset_dicts)
        return LeaveOutUnreadable(UnlabelledMapper(cfg, is_train=True))

    def build_hooks(self) -> list[HookBase]:
        """The Trainer's, and before anything is saved or written the target's update and the collapse guard."""
        model, mim = self.checkpointer.model, self.cfg.MODEL.MIM
        added: list[HookBase] = [TargetUpdate(model)]
        if not isinstance(model.target, PixelTarget):  # pixels cannot collapse
            added.append(CollapseGuard(model, self.guard_images, mim.GUARD_PERIOD, mim.GUARD_FRACTION))
        timer, schedule, *others = super().build_hooks()
        return [timer, schedule, *added, *others]

    def build_evaluation_hooks(self, model: nn.Module) -> list[HookBase]:
        """Evaluation only: a loss of masked images says little about features, so no checkpoint is the best."""
        return [self.build_eval_hook(model)]

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
        """Reconstructions and feature quality; the files of several test sets go to a folder each."""
        output_dir = cls.evaluation_dir(cfg, dataset_name)
        reconstruction = ReconstructionEvaluator(output_dir, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
        return DatasetEvaluators([reconstruction, FeatureEvaluator(dataset_name, output_dir)])

    @classmethod
    def evaluate(cls, cfg: CfgNode, resume: bool = False) -> dict[str, Any]:
        """As the Trainer's; of weights that are an encoder alone, such as ``timm://…``, the features alone."""
        if resume or not _is_encoder_alone(cfg.MODEL.WEIGHTS):
            return super().evaluate(cfg, resume)
        model = cls.build_model(cfg)
        checkpointer = Checkpointer(model, allow_partial=cfg.MODEL.VIT.ALLOW_PARTIAL_WEIGHTS)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
        evaluators = [FeatureEvaluator(name, cls.evaluation_dir(cfg, name)) for name in cfg.DATASETS.TEST]
        return cls.test(cfg, model, evaluators)

    @classmethod
    def build_test_mapper(cls, cfg: CfgNode) -> RadiographMapper:
        """Images by ``INPUT.MIN_SIZE_TEST``, whatever ``TEST.AUG`` says."""
        return RadiographMapper(cfg, is_train=False)

    @classmethod
    def build_detector(cls, cfg: CfgNode, model: nn.Module) -> nn.Module:
        """The model as it is: there are no detections that ``TEST.AUG`` could unite."""
        return model

    def guard_images(self) -> Tensor:
        """Images of the training set, evenly spaced, for the collapse guard: (N, C, H, W), grey levels."""
        mapper = LeaveOutUnreadable(UnlabelledMapper(self.cfg, is_train=False))
        num_images = min(self.cfg.MODEL.MIM.GUARD_IMAGES, len(self.dataset_dicts))
        spaced = [index * len(self.dataset_dicts) // num_images for index in range(num_images)]
        # The others stand in for those that cannot be read.
        order = spaced + sorted(set(range(len(self.dataset_dicts))) - set(spaced))
        mapped = map(mapper, (self.dataset_dicts[index] for index in order))
        images = list(islice((item["image"] for item in mapped if item is not None), num_images))
        if len(images) < 2:
            raise ValueError(
                f"the collapse guard compares images, and found {len(images)}; expected MODEL.MIM.GUARD_IMAGES >= 2 "
                "and a training set of 2 images or more"
            )
        return torch.stack(images)


class TargetUpdate(HookBase):
    """Lets the target follow the encoder after every step of the optimizer.

    Args:
        model: the model that is trained, not wrapped.
    """

    def __init__(self, model: MaskedImageModel) -> None:
        self._model = model

    def before_train(self) -> None:
        """Take over what ``MODEL.WEIGHTS`` brought; a target that is resumed is right already."""
        if self.trainer.iter == 0:
            self._model.update_target(0)

    def after_step(self) -> None:
        """Follow the step just made."""
        self._model.update_target(self.trainer.iter + 1)


def _is_encoder_alone(weights: str) -> bool:
    """Whether weights lack what a ``MaskedImageModel`` has beside the ViT."""
    if not weights or weights.startswith(TIMM_SCHEME):
        return bool(weights)
    state = read_checkpoint(weights.partition("?")[0])["model"]  # behind it, Detectron2 takes options
    return not any(key.removeprefix("module.").startswith("decoder.") for key in state)


def trainer_class(cfg: CfgNode) -> type[Trainer]:
    """The class that trains and evaluates ``MODEL.META_ARCHITECTURE``."""
    return Pretrainer if needs_no_labels(cfg) else Trainer
