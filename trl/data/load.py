"""Load a data set by name, from raw files or by download."""

import os
from pathlib import Path
from typing import Any

from trl.data.base import Dataset
from trl.data.registry import DATASETS


def load_dataset(name: str, raw: Path | None = None, **options: Any) -> Dataset:
    """The data set `name`, read from the folder `raw` (default: $TRL_RAW_DATA), or downloaded if neither is given.

    `options` are those of the data set, such as `path` and `size` of `image_folder`. Downloads go to the user's cache
    ($XDG_CACHE_HOME/trl or ~/.cache/trl). Files are verified in both cases. TrlError for a file that is missing,
    truncated or not as published, and for an unknown data set or option.
    """
    folder = raw or os.environ.get("TRL_RAW_DATA") or None
    dataset: Dataset = DATASETS.build(name, Path(folder).expanduser() if folder else None, **options)
    return dataset
