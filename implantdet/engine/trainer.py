"""The Trainer of all models: Detectron2's loop with AdamW, lengths in epochs, EMA and exact resuming."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from timm.utils import ModelEmaV3
from torch import nn

from implantdet.assembly.assembler import PartAssembler
from implantdet.data.copy_paste import add_copy_paste
from implantdet.data.dataset_mapper import RadiographMapper
from implantdet.data.images import PANORAMIC_SHAPE
from implantdet.engine.checkpoint import BEST, Checkpointer
from implantdet.engine.hooks import (
    BestCheckpointer,
    Evaluation,
    PeriodicCheckpointer,
    ProgressPrinter,
    ValidationLoss,
    WeightAveraging,
)
from implantdet.engine.loader import Mapper, build_stream, seed_everything
from implantdet.engine.optimizer import build_adamw
from implantdet.engine.schedule import with_lengths
from implantdet.engine.second_stage import Predictions, SecondStage, load_assembler
from implantdet.engine.step import StepTrainer
from implantdet.evaluation.coco_evaluator import COCOEvaluator
from implantdet.evaluation.implant_evaluator import ImplantEvaluator
from implantdet.evaluation.stopwatch import TimedModel
from implantdet.modeling.tiles import TiledDetector
from implantdet.modeling.tta import ImplantRCNNWithTTA


class Trainer(DefaultTrainer):
    """Trains what ``cfg`` describes: ``resume_or_load``, then ``train``.

    On the CPU, a training that is interrupted and resumed ends with the same weights, bit for bit. After every
    ``SOLVER.EVAL_EPOCHS`` the last two checkpoints, the best one by validation AP and ``results.json`` are on disk;
    checkpoints may be denser (``SOLVER.CHECKPOINT_EPOCHS``).

    Args:
        cfg: complete (``implantdet.engine.setup``), with lengths in epochs (``implantdet.engine.schedule``).

    Raises:
        ValueError: a length is out of its range, or the batch cannot be split as asked for.
    """

    _has_begun = False

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)  # DefaultTrainer's own builds Detectron2's step and checkpointer
        self.dataset_dicts = self.build_dataset_dicts(cfg)
        self.cfg = cfg = with_lengths(cfg, len(self.dataset_dicts))
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        _check_batch(cfg)

        seed_everything(self.seed)  # the first weights too depend on nothing but the seed
        model = self.build_model(cfg)
        self.ema = ModelEmaV3(model, decay=cfg.SOLVER.EMA_DECAY, use_warmup=True) if cfg.SOLVER.EMA_DECAY else None
        optimizer = self.build_optimizer(cfg, model)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        # Without device_ids, several processes can share a CPU.
        device_ids = [comm.get_local_rank()] if next(model.parameters()).is_cuda else None
        self._trainer = StepTrainer(
            create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids),
            self._build_stream(),
            optimizer,
            accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
            amp=cfg.SOLVER.AMP.ENABLED,
            seed=self.seed,
        )
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            allow_partial=cfg.MODEL.VIT.ALLOW_PARTIAL_WEIGHTS,
            trainer=weakref.proxy(self),
            **({"ema": self.ema.module} if self.ema else {}),
        )
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint in ``OUTPUT_DIR``, or start from ``MODEL.WEIGHTS``.

        Args:
            resume: go on if there is a checkpoint. If False, a later resume does not find what an earlier training
                left in ``OUTPUT_DIR``.

        Raises:
            ValueError: processes find different checkpoints.
        """
        if resume:
            self._check_same_checkpoint()
        if not resume and comm.is_main_process():
            self._leave_behind(Path(self.cfg.OUTPUT_DIR) / "last_checkpoint")
        if resume and not self.checkpointer.has_checkpoint() and comm.is_main_process():
            logging.getLogger(__name__).warning(
                "OUTPUT_DIR '%s' has no checkpoint to resume; the training starts from %s.",
                *(self.cfg.OUTPUT_DIR, self.cfg.MODEL.WEIGHTS or "random weights"),
            )
        super().resume_or_load(resume)
        self._trainer.reset_data_loader(self._build_stream)  # from start_iter on

    def _leave_behind(self, last_checkpoint: Path) -> None:
        if last_checkpoint.is_file():
            logging.getLogger(__name__).warning(
                "OUTPUT_DIR '%s' has a training that came to %s. This one starts anew and takes its place: its files "
                "are written over. --resume would have gone on with it; another OUTPUT_DIR keeps it.",
                *(self.cfg.OUTPUT_DIR, last_checkpoint.read_text(encoding="utf-8").strip()),
            )
            last_checkpoint.unlink()

    def before_train(self) -> None:
        """Let the hooks begin."""
        super().before_train()
        self._has_begun = True

    def after_train(self) -> None:
        """Let the hooks end, and close the logs whatever happens.

        If one of them failed before the first step, the others do not end: a finished training whose resume is refused
        would be evaluated with what is refused.
        """
        self.storage.iter = self.iter
        writers = [hook for hook in self._hooks if isinstance(hook, hooks.PeriodicWriter)]
        try:
            for hook in self._hooks if self._has_begun else ():
                if hook not in writers:
                    hook.after_train()
        finally:
            for writer in writers:
                writer.after_train()

    def _check_same_checkpoint(self) -> None:
        found = self.checkpointer.get_checkpoint_file() if self.checkpointer.has_checkpoint() else ""
        names = comm.all_gather(Path(found).name)
        if len(set(names)) > 1:
            raise ValueError(
                f"OUTPUT_DIR '{self.cfg.OUTPUT_DIR}': the processes find the checkpoints {names} to resume from, "
                "expected the same one; machines that train together need a common OUTPUT_DIR"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, and a seed that was drawn (``SEED -1``)."""
        wanted = settings_of(self._trainer.optimizer)
        super().load_state_dict(state_dict)
        if settings_of(self._trainer.optimizer) != wanted:
            logging.getLogger(__name__).warning(
                "SOLVER.BASE_LR, LAYER_DECAY, WEIGHT_DECAY or BETAS differ from those of the training that is resumed, "
                "which goes on with its own. To train on with these, start anew from its weights (MODEL.WEIGHTS), "
                "without --resume."
            )
        if self.cfg.SEED < 0:
            self.seed = self._trainer.seed = state_dict["_trainer"].get("seed", self.seed)

    @classmethod
    def build_dataset_dicts(cls, cfg: CfgNode) -> list[dict[str, Any]]:
        """The training set."""
        return get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)

    @classmethod
    def build_mapper(cls, cfg: CfgNode, dataset_dicts: list[dict[str, Any]]) -> Mapper:
        """From a dataset dict of the training set to the model's input, with pasted implants if they are asked for."""
        warn_of_zoom(cfg, dataset_dicts)
        return add_copy_paste(cfg, RadiographMapper(cfg, is_train=True), dataset_dicts)

    @classmethod
    def build_detector(cls, cfg: CfgNode, model: nn.Module) -> nn.Module:
        """What is evaluated of a trained model: it looks at versions by ``TEST.AUG``, at tiles by ``TILE_SIZE``."""
        if cfg.TEST.AUG.ENABLED:
            return ImplantRCNNWithTTA(cfg, model)
        return TiledDetector(cfg, model) if cfg.TEST.TILE_SIZE else model

    def _build_stream(self) -> Iterable[list[dict[str, Any]]]:
        mapper = self.build_mapper(self.cfg, self.dataset_dicts)
        start = self.start_iter * self.cfg.SOLVER.IMS_PER_BATCH
        return build_stream(self.cfg, self.dataset_dicts, mapper, self.seed, start)

    def build_hooks(self) -> list[HookBase]:
        """Timing, schedule, averaging, checkpoints, validation and logs, in the order in which they have to run."""
        cfg = self.cfg
        built: list[HookBase] = [hooks.IterationTimer(), hooks.LRScheduler()]
        if self.ema:
            built.append(WeightAveraging(self.ema, self.checkpointer.model))
        if comm.is_main_process():
            built.append(PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, max_to_keep=2))
        if cfg.DATASETS.TEST:
            built += self.build_evaluation_hooks(self.ema.module if self.ema else self.checkpointer.model)
        if comm.is_main_process():
            built.append(hooks.PeriodicWriter(self.build_writers()))
        return built

    def build_evaluation_hooks(self, model: nn.Module) -> list[HookBase]:
        """Validation loss and metrics of ``model``, the best checkpoint by AP, and the second stage at the end."""
        cfg, period = self.cfg, self.cfg.TEST.EVAL_PERIOD
        found: dict[str, Predictions] = {}
        built: list[HookBase] = [
            ValidationLoss(period, model, lambda: build_validation_loader(cfg)),
            self.build_eval_hook(model, found),
        ]
        if comm.is_main_process():
            prefix = f"{cfg.DATASETS.TEST[0]}/" if len(cfg.DATASETS.TEST) > 1 else ""
            built.append(BestCheckpointer(period, self.checkpointer, f"{prefix}bbox/AP", file_prefix=BEST))
        return [*built, SecondStage(cfg, self.build_detector(cfg, model), found)]

    def build_eval_hook(self, model: nn.Module, found: dict[str, Predictions] | None = None) -> HookBase:
        """Metrics of ``model`` every ``TEST.EVAL_PERIOD``, by one version of each image whatever ``TEST.AUG`` says.

        What the last evaluation finds goes into ``found``, by dataset, if it is all that ``TEST.AUG`` would find.
        """
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.TEST.AUG.ENABLED = False  # many versions would take too long so often

        def test() -> dict[str, Any]:
            evaluators = None
            if found is not None and self.iter >= self.max_iter and not self.cfg.TEST.AUG.ENABLED:
                found.update({name: Predictions() for name in cfg.DATASETS.TEST})
                evaluators = [DatasetEvaluators([found[name], self.build_evaluator(cfg, name)]) for name in found]
            # Under this name Detectron2 compares it with TEST.EXPECTED_RESULTS.
            self._last_eval_results = self.test(cfg, self.build_detector(cfg, model), evaluators)
            return self._last_eval_results

        return Evaluation(cfg.TEST.EVAL_PERIOD, test)

    def build_writers(self) -> list[EventWriter]:
        """The log, ``metrics.json``, and TensorBoard if it is installed."""
        output_dir = Path(self.cfg.OUTPUT_DIR)
        writers: list[EventWriter] = [
            ProgressPrinter(self.max_iter, self.cfg.SOLVER.IMS_PER_BATCH),
            JSONWriter(str(output_dir / "metrics.json")),
        ]
        if find_spec("tensorboard"):
            writers.append(TensorboardXWriter(str(output_dir)))
        return writers

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW, see ``implantdet.engine.optimizer``."""
        return build_adamw(cfg, model)

    @classmethod
    def build_test_mapper(cls, cfg: CfgNode) -> RadiographMapper:
        """Images by ``INPUT.MIN_SIZE_TEST``; in their own size for the versions of ``build_detector``."""
        own_size: dict[str, Any] = {"augmentations": [], "panoramic_augmentations": []} if cfg.TEST.AUG.ENABLED else {}
        return RadiographMapper(cfg, is_train=False, **own_size)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        """Images one by one."""
        return build_detection_test_loader(cfg, dataset_name, mapper=cls.build_test_mapper(cfg))

    @classmethod
    def evaluation_dir(cls, cfg: CfgNode, dataset_name: str) -> Path:
        """``OUTPUT_DIR``; of several test sets, a folder of it for each."""
        return Path(cfg.OUTPUT_DIR) / (dataset_name if len(cfg.DATASETS.TEST) > 1 else "")

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        """COCO's metrics; the files of several test sets go to a folder each."""
        output_dir = cls.evaluation_dir(cfg, dataset_name)
        return COCOEvaluator(dataset_name, output_dir, ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",))

    @classmethod
    def test_implants(cls, cfg: CfgNode, model: nn.Module, assembler: PartAssembler) -> dict[str, Any]:
        """Like ``test``, of both stages."""
        detector = TimedModel(model)
        evaluators = [
            ImplantEvaluator(cls.build_evaluator(cfg, name), assembler, detector) for name in cfg.DATASETS.TEST
        ]
        return cls.test(cfg, detector, evaluators)

    @classmethod
    def evaluate(cls, cfg: CfgNode, resume: bool = False) -> dict[str, Any]:
        """Evaluate a trained model on ``DATASETS.TEST``, with its averaged weights if the checkpoint has them.

        Implants are evaluated too, by the assembler beside the checkpoint, where the training set allows it.

        Args:
            cfg: complete, see ``implantdet.engine.setup``.
            resume: take the last checkpoint in ``OUTPUT_DIR`` instead of ``MODEL.WEIGHTS``.

        Raises:
            ValueError: there are no weights, they do not cover the model, or there is no assembler beside them.
        """
        model = cls.build_model(cfg)
        # Loaded after `model`, averaged weights take its place.
        checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, ema=model)
        path = checkpointer.get_checkpoint_file() if resume else cfg.MODEL.WEIGHTS
        if not path:
            raise ValueError(
                "nothing to evaluate: give MODEL.WEIGHTS <a training's OUTPUT_DIR>/model_final.pth, or --resume for "
                f"the last checkpoint in OUTPUT_DIR (found MODEL.WEIGHTS '{cfg.MODEL.WEIGHTS}' and OUTPUT_DIR "
                f"'{cfg.OUTPUT_DIR}')"
            )
        checkpointer.load(path)
        assembler = load_assembler(cfg, path)
        detector = cls.build_detector(cfg, model)
        return cls.test(cfg, detector) if assembler is None else cls.test_implants(cfg, detector, assembler)


def build_validation_loader(cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
    """The test sets with their ground truth, one image by one, without augmentation."""
    tested = RadiographMapper.from_config(cfg, is_train=False)
    as_tested = {key: tested[key] for key in ("augmentations", "panoramic_augmentations")}
    mapper = RadiographMapper(cfg, is_train=True, **as_tested)
    dataset_dicts = get_detection_dataset_dicts(cfg.DATASETS.TEST, filter_empty=False)
    return build_detection_test_loader(dataset_dicts, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS)


def settings_of(optimizer: torch.optim.Optimizer) -> list[list[Any]]:
    """What the config says of every group of parameters, at the start of the schedule."""
    keys = ("initial_lr", "weight_decay", "betas")
    return [[group.get(key) for key in keys] for group in optimizer.param_groups]


def warn_of_zoom(cfg: CfgNode, dataset_dicts: list[dict[str, Any]]) -> None:
    """Say that ``INPUT.PANORAMIC_ZOOM`` does little where no image says what it is."""
    if cfg.INPUT.PANORAMIC_ZOOM != 1 and not any("modality" in record for record in dataset_dicts):
        logging.getLogger(__name__).warning(
            "INPUT.PANORAMIC_ZOOM is %s, but no image of the training set has a 'modality', which annotations.json or "
            "a DICOM header tells: none is enlarged but what is at least %s times as wide as high.",
            *(cfg.INPUT.PANORAMIC_ZOOM, PANORAMIC_SHAPE),
        )


def _check_batch(cfg: CfgNode) -> None:
    if cfg.SOLVER.REFERENCE_WORLD_SIZE:
        raise ValueError(
            f"SOLVER.REFERENCE_WORLD_SIZE is {cfg.SOLVER.REFERENCE_WORLD_SIZE}; expected 0: lengths are in epochs, and "
            "IMS_PER_BATCH is that of all processes, whatever their number"
        )
    parts = comm.get_world_size() * cfg.SOLVER.ACCUMULATION_STEPS
    if cfg.SOLVER.ACCUMULATION_STEPS < 1 or cfg.SOLVER.IMS_PER_BATCH % parts:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}; expected a multiple of {comm.get_world_size()} "
            f"process(es) × SOLVER.ACCUMULATION_STEPS {cfg.SOLVER.ACCUMULATION_STEPS} (>= 1)"
        )
