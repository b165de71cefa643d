"""Stage ensemble: attack several models of a recipe together, by min-max and by averaging."""

import sys

from tasks.stage import Stage, run_stage


def attack_ensemble(stage: Stage, name: str) -> None:
    """Write ensemble.json: for each seed the share of images that fools all models, and the models' weights."""
    from trl.common.errors import TrlError
    from trl.common.progress import say
    from trl.data import load_splits
    from trl.evaluation.together import attack_together
    from trl.models import load_model
    from trl.nn.device import choose_device
    from trl.results import EnsembleResult
    from trl.threat import build_threat

    recipe, device = stage.recipe, choose_device()
    if name not in recipe.ensembles:
        known = ", ".join(recipe.ensembles) or "none"
        raise TrlError(f"unknown ensemble {name!r}; recipes.{stage.recipe_name}.ensembles has {known}")
    config = recipe.ensembles[name]
    test = load_splits(stage.paths.data).test
    threat = build_threat(**recipe.threat.model_dump())
    options = config.model_dump(exclude={"methods", "samples"})
    seeds = {}
    for seed in stage.params.seeds:
        models = {method: load_model(stage.paths.model(method, seed).model, device) for method in config.methods}
        images, labels = test.images[: config.samples], test.labels[: config.samples]
        seeds[seed] = found = attack_together(models, images, labels, threat, **options)
        shares = f"min-max {found.minmax.all.value:.1%}, averaging {found.average.all.value:.1%}"
        say(f"{name}, seed {seed}: images that fool all of {', '.join(config.methods)}: {shares}")
    stage.check_inputs()
    result = EnsembleResult(epsilon=threat.epsilon, methods=list(config.methods), seeds=seeds)
    result.write(stage.paths.ensemble(name))


if __name__ == "__main__":
    sys.exit(run_stage(attack_ensemble, per_model=False, names={"name": "an ensemble of that recipe"}))
