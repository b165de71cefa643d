"""Stage prepare: read and verify the data set, and split validation images off its training images.

It runs again when the files of an image folder change: the folder `data` is one of its dependencies in dvc.yaml, and no
image folder may lie elsewhere. DVC does not follow links to folders, so there must be none.
"""

import os
import sys
from pathlib import Path

from tasks.stage import Stage, run_stage
from trl.common.errors import TrlError

WATCHED = "data"


def prepare(stage: Stage) -> None:
    """Write the splits of the recipe's data set."""
    from trl.data import load_dataset, save_splits, split

    data = stage.recipe.data
    if "path" in data.options:
        check_watched(data.options["path"], f"recipes.{stage.recipe_name}.data.path")
    splits = split(load_dataset(data.name, **data.options), data.validation, data.split_seed, data.train)
    stage.check_inputs()
    save_splits(splits, stage.paths.data)
    sizes = f"{len(splits.train)} training, {len(splits.validation)} validation, {len(splits.test)} test images"
    print(f"{data.name}: {sizes} of {'x'.join(map(str, splits.train.shape))} in {len(splits.classes)} classes")


def check_watched(path: str, key: str) -> None:
    """TrlError unless DVC notices each change in the folder `path`, which the parameter `key` names."""
    root, folder = Path(WATCHED).resolve(), Path(path).expanduser()
    if not folder.resolve().is_relative_to(root):
        raise TrlError(
            f"{key}: {path} is not in the project's folder {WATCHED}, whose changes DVC notices; move it there"
        )
    for above, folders, _ in os.walk(folder):
        for link in (Path(above, name) for name in folders):
            if link.is_symlink():
                raise TrlError(f"{link}: a link to a folder, in which DVC notices no change; move the folder here")


if __name__ == "__main__":
    sys.exit(run_stage(prepare, per_model=False))
