"""Evaluation: worst-case bookkeeping over attacks, detection figures, analyses of the representation."""

from trl.evaluation.embeddings import embed
from trl.evaluation.evaluate import Evaluation, epsilon_curve, evaluate, perturb

__all__ = ["Evaluation", "embed", "epsilon_curve", "evaluate", "perturb"]
