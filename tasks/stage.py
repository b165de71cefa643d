"""What every stage's command shares: its arguments, and errors as one line."""

import argparse
import atexit
import gc
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from tasks.dependencies import check_code
from tasks.inputs import Inputs, inputs_of, params_text
from tasks.paths import ModelPaths, RecipePaths
from tasks.redaction import error_line
from trl.common.errors import TrlError
from trl.config import Params, Recipe, load_params


@dataclass(frozen=True)
class Stage:
    """One run of a stage: the parameters it reads and the model (method, seed) it works on."""

    params: Params
    recipe_name: str
    method: str = ""
    seed: int = 0
    inputs: Inputs | None = None

    def check_inputs(self) -> None:
        """TrlError if what the stage started from has changed. Call it before results are written."""
        if self.inputs:
            self.inputs.check()

    @property
    def recipe(self) -> Recipe:
        """The recipe's parameters."""
        return self.params.recipes[self.recipe_name]

    @property
    def paths(self) -> RecipePaths:
        """The recipe's files."""
        return RecipePaths(self.recipe_name)

    @property
    def model_paths(self) -> ModelPaths:
        """The model's files."""
        return self.paths.model(self.method, self.seed)


def run_stage(
    work: Callable[..., None],
    *,
    per_model: bool | Literal["optional"],
    arguments: list[str] | None = None,
    paths: Mapping[str, str] = MappingProxyType({}),
    names: Mapping[str, str] = MappingProxyType({}),
    as_written: bool = False,
) -> int:
    """Parse the command line, read params.yaml and do `work`; the exit status. An error for the user is one line.

    `per_model`: the stage is one of a model, which --method and --seed name; if "optional", `work` gets those by name
    besides, None where they are left out. `paths` and `names`: further required arguments, files and words, and what
    they say in --help; `work` gets them by name, after the stage. `as_written`: the stage computes nothing, so that
    options need no check (which needs PyTorch).
    """
    parser = argparse.ArgumentParser(description=sys.modules[work.__module__].__doc__)
    parser.add_argument("--recipe", help="a recipe of params.yaml (default: its `recipe`)")
    if per_model == "optional":
        parser.add_argument("--method", help="a method of that recipe, such as tla (default: each of `methods`)")
        parser.add_argument("--seed", type=int, help="the model's seed (default: each of `seeds`)")
    elif per_model:
        parser.add_argument("--method", required=True, help="a method of that recipe, such as tla")
        parser.add_argument("--seed", type=int, default=0, help="the model's seed (default 0)")
    for path, text in paths.items():
        parser.add_argument(f"--{path}", type=Path, required=True, help=text)
    for name, text in names.items():
        parser.add_argument(f"--{name}", required=True, help=text)
    given = vars(parser.parse_args(arguments))
    named = {key: given.pop(key) for key in (*paths, *names)}
    atexit.register(gc.freeze)  # at the end nothing is looked through for garbage, for a second
    try:
        text = params_text()  # first: an edit between the two is noticed, too
        params = load_params(as_written=as_written)
        name = given.pop("recipe") or params.recipe
        if name not in params.recipes:
            raise TrlError(f"unknown recipe {name!r}; params.yaml has {', '.join(params.recipes)}")
        method = given.get("method")
        if method is not None and method not in params.recipes[name].methods:
            known = ", ".join(params.recipes[name].methods)
            raise TrlError(f"unknown method {method!r}; recipes.{name}.methods has {known}")
        kind = Path(inspect.getfile(work)).stem
        if not as_written:
            check_code(kind, params.recipes[name])
        if per_model == "optional":
            work(Stage(params, name), **given, **named)
        else:
            stage = Stage(params, name, **given, inputs=inputs_of(kind, {"recipe": name, **given, **named}, text))
            work(stage, **named)
            stage.check_inputs()
    except (TrlError, OSError) as error:
        print(error_line(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: repeat the command to go on", file=sys.stderr)
        return 130
    return 0
