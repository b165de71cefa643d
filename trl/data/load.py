"""A data set by its name, from raw files or downloaded."""

import os
from pathlib import Path

from trl.data.base import Dataset
from trl.data.registry import DATASETS


def load_dataset(name: str, raw: Path | None = None) -> Dataset:
    """The data set `name`, read from the folder `raw` (default: what TRL_RAW_DATA names) or else downloaded.

    Downloads go to the user's cache ($XDG_CACHE_HOME/trl or ~/.cache/trl). Either way the files are verified: TrlError
    names one that is missing, truncated or not the publisher's.
    """
    folder = raw or os.environ.get("TRL_RAW_DATA") or None
    dataset: Dataset = DATASETS.get(name)(Path(folder).expanduser() if folder else None)
    return dataset
