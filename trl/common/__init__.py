"""Utilities that know nothing of models: errors, numbers, seeds, files, arrays, progress."""
