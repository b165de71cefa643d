"""Stage certify: the smoothed classifier of one model, with the radius within which each prediction holds."""

import shutil
import sys

from tasks.fingerprint import state_folder
from tasks.stage import Stage, run_stage
from trl.common.errors import TrlError


def certify_model(stage: Stage) -> None:
    """Write certify.json, certified accuracy against the radius, and each sample's prediction and radius."""
    from safetensors.torch import save

    from trl.common.files import write_atomic
    from trl.common.progress import say
    from trl.data import load_splits
    from trl.evaluation import certify
    from trl.models import load_model, weights_sha256
    from trl.nn.device import choose_device
    from trl.results import CertifiedPoint

    config, paths = stage.recipe.certify, stage.model_paths
    if config is None:
        raise TrlError(f"recipes.{stage.recipe_name} of params.yaml has no section certify: add one")
    model = load_model(paths.model, choose_device())
    test = load_splits(stage.paths.data).test
    state = state_folder("certify", stage, weights_sha256(paths.model))
    found = certify(
        *(model, test.images[: config.images], test.labels[: config.images], config.sigma),
        selection=config.selection,
        samples=config.samples,
        alpha=config.alpha,
        batch_size=config.batch_size,
        seed=stage.seed,
        state=state,
    )
    stored = {"predictions": found.predictions, "radii": found.radii, "labels": found.labels}
    stage.check_inputs()
    write_atomic(paths.certificates / "certificates.safetensors", save(stored))
    points = found.curve(config.radii)
    CertifiedPoint.write(paths.metrics, points)
    found.result().write(paths.metrics)
    shutil.rmtree(state)
    certified = "  ".join(f"r={point.radius:g} {point.accuracy:.1%}" for point in points)
    say(f"{stage.method}-{stage.seed}: certified accuracy  {certified}")


if __name__ == "__main__":
    sys.exit(run_stage(certify_model, per_model=True))
