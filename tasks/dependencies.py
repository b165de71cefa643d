"""Keep the code that each stage depends on in dvc.yaml: run it after a change of imports, or of what recipes name."""

import argparse
import io
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trl.common.code_version import ROOT, imported_modules, source_files
from trl.common.errors import TrlError
from trl.common.files import write_atomic
from trl.config import Recipe, load_params
from trl.spec import Section, Spec

GRAPH = Path("dvc.yaml")
SECTION = "recipes.${item.recipe}."  # how a stage's params begin in dvc.yaml
COMMAND = "python -m tasks.dependencies"


def modules_of(stage: str, recipes: Iterable[Recipe], sections: Iterable[str], method: str = "") -> set[str]:
    """The modules of trl whose import closure the `stage` runs: what it imports, and what the recipes' sections name.

    Of the methods and their models, those of `method` alone if it is given. What the stage imports from tasks computes
    nothing.
    """
    found = {module for module in imported_modules(_file(stage)) if module.startswith("trl.")}
    for recipe in recipes:
        for section in sections:
            methods = [method] if method else recipe.methods
            value: object = getattr(recipe, section)
            if section == "model":
                value = {each: recipe.model_of(each) for each in methods}
            elif section == "methods":
                value = {each: recipe.methods[each] for each in methods}
            found |= {_module(kind, name) for kind, name in _named(value, section)}
    return found


def code_of(stage: str, recipes: Iterable[Recipe], graph: Mapping[str, Any]) -> list[str]:
    """The files, below the project's root, that a `stage` of dvc.yaml (the parsed `graph`) runs for these recipes."""
    sections = [
        param.removeprefix(SECTION).split(".")[0]
        for param in graph["stages"][stage].get("params", ())
        if param.startswith(SECTION)
    ]
    files = source_files(*modules_of(stage, recipes, sections))
    return [path.relative_to(ROOT).as_posix() for path in (_file(stage), *files)]


def check_code(stage: str, recipe: Recipe) -> None:
    """TrlError if dvc.yaml, where there is one, leaves out a file that the `stage` runs for this recipe.

    Without it a change in that file would rerun nothing, and DVC would call an old result up to date.
    """
    if not GRAPH.is_file() or Path.cwd() != ROOT:
        return
    graph = _load(GRAPH.read_text(encoding="utf-8"))
    if stage in graph["stages"]:
        missing = [path for path in code_of(stage, [recipe], graph) if path not in graph["stages"][stage]["deps"]]
        if missing:
            raise TrlError(f"{GRAPH}: stage {stage} depends on {', '.join(missing)}, too; run {COMMAND}")


def updated(text: str, recipes: Iterable[Recipe]) -> str:
    """dvc.yaml's `text` with the code of every stage as it is; all else stays as it is written."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = sys.maxsize
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.preserve_quotes = True
    graph, recipes = yaml.load(text), list(recipes)
    for name, stage in graph["stages"].items():
        others = [path for path in stage["deps"] if not path.startswith(("trl", "tasks"))]
        stage["deps"][:] = [*others, *code_of(name, recipes, graph)]
    stream = io.StringIO()
    yaml.dump(graph, stream)
    return stream.getvalue()


def _load(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


def _file(stage: str) -> Path:
    return ROOT / "tasks" / f"{stage.removesuffix('_on_proxies')}.py"  # a stage of its own, but the same command


def _named(value: object, key: str) -> Iterator[tuple[str, str]]:
    """What a section names, at any depth: by the key that it stands under, and its name."""
    if isinstance(value, Spec):
        yield key, value.name
    elif isinstance(value, Section):
        for field in type(value).model_fields:
            yield from _named(getattr(value, field), field)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _named(each, key)


def _module(key: str, name: str) -> str:
    """The module of the implementation that is called `name` under `key` in params.yaml."""
    from trl.attacks import ATTACKS
    from trl.data import DATASETS
    from trl.detectors import DETECTORS
    from trl.models import MODELS
    from trl.objectives import OBJECTIVES
    from trl.proxies import PROXIES

    registries = {
        **{"attack": ATTACKS, "attacks": ATTACKS, "data": DATASETS},
        **{"detectors": DETECTORS, "methods": OBJECTIVES, "model": MODELS, "proxies": PROXIES},
    }
    return registries[key].module(name)


def main(arguments: list[str] | None = None) -> int:
    """Write dvc.yaml, or say whether it is right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if dvc.yaml is not right")
    check = parser.parse_args(arguments).check
    try:
        before = GRAPH.read_text(encoding="utf-8")
        after = updated(before, load_params().recipes.values())
        if before == after:
            print(f"{GRAPH}: right as it is")
        elif check:
            raise TrlError(f"{GRAPH}: the code that stages depend on has changed; run {COMMAND}")
        else:
            write_atomic(GRAPH, after.encode())
            print(f"{GRAPH}: written; stages whose list has changed run again")
    except (TrlError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
