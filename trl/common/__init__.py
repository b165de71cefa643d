"""Small pieces about no model: errors, numbers, seeds, files, arrays, progress."""
