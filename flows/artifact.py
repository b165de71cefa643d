"""What Prefect's pages show of a flow run besides its tasks: its name, and the comparison with links to MLflow."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from tasks.tracking import comparison_name
from trl.common.errors import TrlError
from trl.config import Params, load_params
from trl.report import markdown_table
from trl.results import Results


def run_name() -> str:
    """The name of the flow run that is starting."""
    return name_of(flow_run.parameters)


def name_of(arguments: Mapping[str, Any]) -> str:
    """What a flow run with these arguments compares; what they leave out is in params.yaml."""
    given = {name: value for name, value in arguments.items() if value}
    try:
        params = load_params(as_written=True)
    except TrlError:  # the flow says what is wrong
        return "trl"
    recipe, methods, seeds = (given.get(name, getattr(params, name)) for name in ("recipe", "methods", "seeds"))
    return " ".join([comparison_name(recipe, methods, seeds), *given.get("overrides", [])])


def publish(params: Params, results: Results, recorded: Sequence[str], report: str) -> str:
    """Store the comparison as an artifact of the flow run, with links to what was `recorded` (the lines
    of `tasks.record`), and where the `report` is; returns where to look, as the end of the run's log.
    """
    pages = {found[1]: found[2] for line in recorded if (found := re.fullmatch(r"(.+): (http\S+)", line))}
    title = comparison_name(params.recipe, results.methods, results.seeds)
    links = [*(f"- [{shown}]({page}), in MLflow" for shown, page in pages.items()), f"- report: `{report}`"]
    create_markdown_artifact("\n".join([f"# {title}", "", markdown_table(results), "", *links]), key=key(params.recipe))
    places = {"report": report, **pages}
    width = max(map(len, places))
    return "\n".join(f"{shown.ljust(width)}  {place}" for shown, place in places.items())


def key(recipe: str) -> str:
    """The artifact's key: Prefect allows small letters, digits and dashes."""
    return "comparison-" + "".join(c if c.isascii() and c.isalnum() else "-" for c in recipe.lower())
