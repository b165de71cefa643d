"""What every stage's command shares: its arguments, its device, and errors as one line."""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from tasks.paths import ModelPaths, RecipePaths
from trl.config import Params, Recipe, load_params
from trl.errors import TrlError


@dataclass(frozen=True)
class Stage:
    """One run of a stage: the parameters it reads and the model (method, seed) it works on."""

    params: Params
    recipe_name: str
    method: str = ""
    seed: int = 0

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


def run_stage(work: Callable[[Stage], None], *, per_model: bool, arguments: list[str] | None = None) -> int:
    """Parse the command line, read params.yaml and do `work`; the exit status. An error a user can mend is one line."""
    parser = argparse.ArgumentParser(description=sys.modules[work.__module__].__doc__)
    parser.add_argument("--recipe", help="a recipe of params.yaml (default: its `recipe`)")
    if per_model:
        parser.add_argument("--method", required=True, help="a method of that recipe, such as tla")
        parser.add_argument("--seed", type=int, default=0, help="the model's seed (default 0)")
    given = vars(parser.parse_args(arguments))
    try:
        params = load_params()
        name = given.pop("recipe") or params.recipe
        if name not in params.recipes:
            raise TrlError(f"unknown recipe {name!r}; params.yaml has {', '.join(params.recipes)}")
        method = given.get("method")
        if method is not None and method not in params.recipes[name].methods:
            known = ", ".join(params.recipes[name].methods)
            raise TrlError(f"unknown method {method!r}; recipes.{name}.methods has {known}")
        work(Stage(params, name, **given))
    except TrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: repeat the command to go on", file=sys.stderr)
        return 130
    return 0


def choose_device() -> str:
    """`TRL_DEVICE` (cpu, cuda, cuda:1, …), or the GPU if there is one; TrlError if it does not exist."""
    import torch

    name = os.environ.get("TRL_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise TrlError(f"TRL_DEVICE={name} cannot be used: {str(error).splitlines()[0]}") from None
    return name
