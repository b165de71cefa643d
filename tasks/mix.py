"""Stage mix: note the samples on which a method trains, so that it is trained again when these change, not others."""

import sys

from tasks.stage import Stage, run_stage
from trl.common.errors import TrlError


def mix(stage: Stage) -> None:
    """Write mix.json."""
    from trl.results import MixResult, ProxyResult

    chosen = stage.recipe.methods[stage.method].proxy
    if not chosen:
        raise TrlError(f"recipes.{stage.recipe_name}.methods.{stage.method} has no `proxy`")
    found = ProxyResult.read(stage.paths.proxy_metrics(chosen.source))
    MixResult(proxy=chosen.source, samples=found.samples).write(stage.paths.mix(stage.method))


if __name__ == "__main__":
    sys.exit(run_stage(mix, per_model=True))
