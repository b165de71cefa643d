"""Speed and results beside the peers, on the same models, images and machine, as ratios."""
