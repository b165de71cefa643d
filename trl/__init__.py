"""Metric learning for adversarial robustness (TLA, Mao et al., NeurIPS 2019): the method, in plain PyTorch."""
