"""Override parameters of a flow run, in the params.yaml of its snapshot."""

import contextlib
import io
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from dvc.exceptions import InvalidArgumentError
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from trl.common.errors import TrlError, explained
from trl.common.files import write_atomic
from trl.config import Params, load_params

PARAMS = "params.yaml"


def override(folder: Path, overrides: list[str]) -> Params:
    """Write `key=value` overrides to params.yaml in `folder`; returns the resulting parameters.

    TrlError for an invalid override, and for parameters that are wrong before or after.
    """
    path = folder / PARAMS
    try:
        if overrides:
            with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):  # `load_params` explains these
                write_atomic(path, overridden(path.read_text(encoding="utf-8"), overrides).encode())
        return load_params(path)
    except TrlError as error:
        raise TrlError(str(error).replace(str(path), PARAMS)) from None
    except OSError as error:  # no room for temporary files
        raise explained(error) from None


def overridden(text: str, overrides: list[str]) -> str:
    """The YAML `text` with Hydra overrides (`key=value`, `+new=value`, `~gone`) applied; all other lines are kept.

    Only the named keys change: a value shared through an anchor or a merge key (`<<`) is written out where it changes,
    and all other uses keep the anchor and its value.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, PARAMS)
        plain: Any = YAML(typ="safe")
        plain.sort_base_mapping_type_on_output = False
        plain.representer.ignore_aliases = lambda _: True  # DVC would change an anchor for all its users
        plain.dump(_parsed(plain, text), copy)
        try:
            apply_overrides(copy, overrides)
        except (InvalidArgumentError, ValueError) as error:  # the latter for a name where a list wants a number
            why, _, _ = str(error.__cause__ or error).partition("\nSee ")  # drop the link that follows
            raise TrlError(f"override of params.yaml: {' '.join(why.split())}") from None
        wanted = plain.load(copy)
    # DVC rewrites the whole file in its own style; copying only the differences keeps comments and layout.
    yaml = YAML()
    yaml.width = sys.maxsize
    yaml.preserve_quotes = True
    yaml.default_flow_style = None  # new innermost lists and mappings go on one line
    kept = yaml.load(text)
    _carry_over(wanted, kept, _shared(kept))
    stream = io.StringIO()
    yaml.dump(kept, stream)
    return stream.getvalue()


def _parsed(yaml: YAML, text: str) -> Any:
    """The content of params.yaml; TrlError unless it is a mapping."""
    try:
        content = yaml.load(text)
    except (YAMLError, ValueError, RecursionError) as error:  # ValueError: such as a date that does not exist
        raise TrlError(f"{PARAMS}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise TrlError(
            f"{PARAMS}: has no keys, such as `recipe:`; restore it, for example with `git checkout {PARAMS}`"
        )
    return content


def _shared(kept: CommentedMap) -> set[int]:
    """The ids of the mappings that occur more than once, through an alias.

    ruamel.yaml drops the names of anchors that PyYAML generates (`&id001`), so a name cannot tell.
    """
    seen: Counter[int] = Counter()

    def visit(value: Any) -> None:
        if isinstance(value, CommentedMap):
            seen[id(value)] += 1
            if seen[id(value)] == 1:
                for _, part in value.non_merged_items():
                    visit(part)
        elif isinstance(value, list):
            for part in value:
                visit(part)

    visit(kept)
    return {place for place, times in seen.items() if times > 1}


def _carry_over(wanted: dict[str, Any], kept: CommentedMap, shared: set[int]) -> None:
    """Make the content of `kept`, which is not shared, equal to `wanted`."""
    for key in set(kept) - set(wanted):
        del kept[key]
    own = dict(kept.non_merged_items())
    for key, value in wanted.items():
        if key in kept and kept[key] == value:
            continue
        if isinstance(value, dict) and _may_change(own.get(key), value, shared):
            _carry_over(value, own[key], shared)
        else:
            kept[key] = value


def _may_change(kept: Any, wanted: dict[str, Any], shared: set[int]) -> bool:
    """Whether a mapping can be changed in place: it is not shared, and no key to remove is merged in."""
    if not isinstance(kept, CommentedMap) or kept.yaml_anchor() or id(kept) in shared:
        return False
    own = {key for key, _ in kept.non_merged_items()}
    return own >= set(kept) - set(wanted)
