"""Robust accuracy: the worst case over attacks, tracked per image, and certificates."""

from trl.evaluation.certify import Certificates, Noisy, certify
from trl.evaluation.evaluate import Evaluation, epsilon_curve, evaluate
from trl.evaluation.run import attack_all

__all__ = ["Certificates", "Evaluation", "Noisy", "attack_all", "certify", "epsilon_curve", "evaluate"]
