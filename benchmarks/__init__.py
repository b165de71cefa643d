"""Benchmarks against other libraries on the same models, images and machine, reported as ratios."""
