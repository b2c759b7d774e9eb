"""Training: the Trainer, its schedule and hooks; prediction."""

from implantdet.engine.predictor import ImplantPredictor
from implantdet.engine.pretrainer import Pretrainer, trainer_class
from implantdet.engine.trainer import Trainer

__all__ = ["ImplantPredictor", "Pretrainer", "Trainer", "trainer_class"]
