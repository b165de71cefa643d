"""Write one trained model, with a model card of its results, to a folder that can be handed on."""

import sys
from pathlib import Path

from tasks.stage import Stage, run_stage
from tasks.weights import check_weights


def export(stage: Stage, out: Path) -> None:
    """Write the model's weights, its card and its RobustBench entry to `out`."""
    from trl.data import load_splits
    from trl.models import load_model
    from trl.report import load_results
    from trl.report.card import ModelFacts
    from trl.report.export import export_model

    folder = stage.model_paths.model
    results = load_results(stage.paths.metrics, (stage.method,), (stage.seed,)).models[0]
    model = load_model(folder)
    check_weights(stage.model_paths)
    facts = ModelFacts(
        name=f"{stage.recipe_name}_{stage.method}_{stage.seed}",
        recipe=stage.recipe_name,
        parameters=stage.recipe.model_dump(mode="json") | {"model": stage.recipe.model_of(stage.method).model_dump()},
        data=load_splits(stage.paths.data).sha256,
        results=results,
    )
    export_model(model, out, facts)
    print(f"{facts.name}: {out / 'README.md'}")


if __name__ == "__main__":
    sys.exit(run_stage(export, per_model=True, paths={"out": "the folder to write"}))
