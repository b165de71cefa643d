"""Threat models: how an attacker may change an image."""

from trl.threat.balls import Ball, L1Ball, LinfBall
from trl.threat.norms import column, dims_of, length
from trl.threat.threats import L1, L2, THREATS, Linf, Threat, build_threat

__all__ = [
    "L1",
    "L2",
    "THREATS",
    "Ball",
    "L1Ball",
    "Linf",
    "LinfBall",
    "Threat",
    "build_threat",
    "column",
    "dims_of",
    "length",
]
