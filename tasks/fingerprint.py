"""What an unfinished stage's files on disk are named by, so that only the same work resumes from them."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.dependencies import modules_of

if TYPE_CHECKING:
    from tasks.stage import Stage


def fingerprint(kind: str, stage: "Stage", sections: Sequence[str], given: str) -> str:
    """A hash of what the result of a stage of this `kind` depends on: parameters, code, versions, what it is `given`.

    `sections`: of the recipe; of its methods, the stage's alone. `given`: a hash of the data or the model.
    """
    from trl.common.code_version import source_digest, versions

    values = {name: getattr(stage.recipe, name) for name in sections}
    if "model" in values:
        values["model"] = stage.recipe.model_of(stage.method)
    if "methods" in values:
        values["methods"] = values["methods"][stage.method]
    content: dict[str, Any] = {name: section.model_dump() for name, section in values.items()}
    code = source_digest(*modules_of(kind, [stage.recipe], sections, stage.method))
    # and not what it imports to log and to write
    here = hashlib.sha256(Path(__file__).with_name(f"{kind}.py").read_bytes()).hexdigest()
    content |= {"seed": stage.seed, "given": given, "code": [here, code], "versions": versions()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def state_folder(kind: str, stage: "Stage", given: str) -> Path:
    """Where an evaluation of this `kind` keeps its state; no other run of it, with other inputs, uses the folder."""
    name = fingerprint(kind, stage, ("model", "threat", kind), given)
    return Path("checkpoints", stage.recipe_name, f"{stage.method}-{stage.seed}-{kind}-{name}")
