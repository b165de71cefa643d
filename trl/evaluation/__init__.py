"""Robust accuracy: the worst case over attacks, tracked per image."""

from trl.evaluation.evaluate import Evaluation, epsilon_curve, evaluate
from trl.evaluation.run import attack_all

__all__ = ["Evaluation", "attack_all", "epsilon_curve", "evaluate"]
