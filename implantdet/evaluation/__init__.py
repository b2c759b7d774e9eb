"""Evaluators and metrics."""

from implantdet.evaluation.coco_evaluator import COCOEvaluator
from implantdet.evaluation.features import FeatureEvaluator
from implantdet.evaluation.implant_evaluator import ImplantEvaluator
from implantdet.evaluation.reconstruction import ReconstructionEvaluator

__all__ = ["COCOEvaluator", "FeatureEvaluator", "ImplantEvaluator", "ReconstructionEvaluator"]
