"""Evaluation: worst-case bookkeeping over attacks, detection figures, analyses of the representation."""

from trl.evaluation.evaluate import Evaluation, epsilon_curve, evaluate, perturb
from trl.representation.embeddings import embed

__all__ = ["Evaluation", "embed", "epsilon_curve", "evaluate", "perturb"]
