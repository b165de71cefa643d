"""A data set by its name, from raw files or downloaded."""

import os
from pathlib import Path
from typing import Any

from trl.data.base import Dataset
from trl.data.registry import DATASETS


def load_dataset(name: str, raw: Path | None = None, **options: Any) -> Dataset:
    """The data set `name`, read from the folder `raw` (default: what TRL_RAW_DATA names) or else downloaded.

    `options` are those of the data set, such as `path` and `size` of `image_folder`. Downloads go to the user's cache
    ($XDG_CACHE_HOME/trl or ~/.cache/trl). Either way the files are verified: TrlError names one that is missing,
    truncated or not the publisher's. TrlError, too, if there is no such data set or option.
    """
    folder = raw or os.environ.get("TRL_RAW_DATA") or None
    dataset: Dataset = DATASETS.build(name, Path(folder).expanduser() if folder else None, **options)
    return dataset
