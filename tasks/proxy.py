"""Stage proxy: fit a proxy to the training images, draw images from it, and measure how good a proxy it is."""

import sys
from functools import partial

from tasks.prepare import check_watched
from tasks.stage import Stage, run_stage
from trl.common.errors import TrlError


def sample_proxy(stage: Stage, proxy: str) -> None:
    """Write the samples, a contact sheet, proxy.json and arc.json."""
    from trl.common.progress import say
    from trl.data import load_splits
    from trl.models import build_model
    from trl.nn.device import choose_device
    from trl.proxies.make import make_samples
    from trl.threat import build_threat

    recipe, key = stage.recipe, f"recipes.{stage.recipe_name}.proxies"
    if proxy not in recipe.proxies:
        raise TrlError(f"unknown proxy {proxy!r}; {key} has {', '.join(recipe.proxies) or 'none'}")
    spec = recipe.proxies[proxy]
    for option in ("path", "model"):  # of files that DVC should watch
        if spec.options.get(option):
            check_watched(spec.options[option], f"{key}.{proxy}.{option}")
    splits, threat = load_splits(stage.paths.data), build_threat(**recipe.threat.model_dump())
    network = partial(build_model, recipe.model.name, 2, splits.train.shape, **recipe.model.options)
    result, arc = make_samples(
        *(spec, splits, stage.paths.proxy(proxy), network, threat, recipe.train),
        device=choose_device(),
    )
    stage.check_inputs()
    metrics = stage.paths.proxy_metrics(proxy)
    result.write(metrics)
    arc.write(metrics)
    for warning in result.warnings:
        say(f"warning: {proxy}: {warning}")
    say(f"{proxy}: {result.kept} of {result.drawn} images, ARC {arc.arc:.4f} ({arc.norm})")


if __name__ == "__main__":
    sys.exit(run_stage(sample_proxy, per_model=False, names={"proxy": "a proxy of that recipe, such as kde"}))
