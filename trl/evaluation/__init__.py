"""Robust accuracy: the worst case over attacks, kept per image."""

from trl.evaluation.evaluate import Evaluation, epsilon_curve, evaluate, perturb

__all__ = ["Evaluation", "epsilon_curve", "evaluate", "perturb"]
