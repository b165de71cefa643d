"""Proxies: distributions that are sampled for more training images, fitted to training images alone."""

from trl.proxies.base import Sampler
from trl.proxies.build import build_proxy
from trl.proxies.registry import PROXIES

__all__ = ["PROXIES", "Sampler", "build_proxy"]
