"""The parameters of a flow run: written to params.yaml as `dvc exp run -S` does, checked, and taken back if wrong."""

import io
import sys
import tempfile
from pathlib import Path

from dvc.exceptions import InvalidArgumentError
from dvc.utils.collections import apply_diff
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from trl.common.errors import TrlError
from trl.config import Params, load_params

PARAMS = Path("params.yaml")


def override(overrides: list[str]) -> Params:
    """Write `key=value` overrides to params.yaml; the parameters that hold now.

    A wrong override is a TrlError and leaves the file as it was.
    """
    before = PARAMS.read_text(encoding="utf-8")
    if not overrides:
        return load_params(PARAMS)
    try:
        PARAMS.write_text(overridden(before, overrides), encoding="utf-8")
        return load_params(PARAMS)
    except BaseException:
        PARAMS.write_text(before, encoding="utf-8")
        raise


def overridden(text: str, overrides: list[str]) -> str:
    """The YAML `text` with Hydra overrides (`key=value`, `+new=value`, `~gone`) applied; all other lines stay."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, PARAMS.name)
        copy.write_text(text, encoding="utf-8")
        try:
            apply_overrides(copy, overrides)
        except InvalidArgumentError as error:
            why, _, _ = str(error.__cause__ or error).partition("\nSee ")  # then only an address follows
            raise TrlError(f"override of params.yaml: {' '.join(why.split())}") from None
        wanted = YAML(typ="safe").load(copy)
    # DVC rewrites the whole file in its own style; carrying over only what differs keeps comments and layout.
    yaml = YAML()
    yaml.width = sys.maxsize
    yaml.preserve_quotes = True
    kept = yaml.load(text)
    apply_diff(wanted, kept)
    stream = io.StringIO()
    yaml.dump(kept, stream)
    return stream.getvalue()
