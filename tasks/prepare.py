"""Stage prepare: read and verify the data set, and split validation images off its training images."""

import sys

from tasks.stage import Stage, run_stage


def prepare(stage: Stage) -> None:
    """Write the splits of the recipe's data set."""
    from trl.data import load_dataset, save_splits, split

    data = stage.recipe.data
    splits = split(load_dataset(data.name), data.validation, data.split_seed)
    save_splits(splits, stage.paths.data)
    sizes = f"{len(splits.train)} training, {len(splits.validation)} validation, {len(splits.test)} test images"
    print(f"{data.name}: {sizes} of {'x'.join(map(str, splits.train.shape))} in {len(splits.classes)} classes")


if __name__ == "__main__":
    sys.exit(run_stage(prepare, per_model=False))
