"""Stage attack: one model's accuracy under every attack of the recipe, and the worst case over all of them."""

import shutil
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from tasks.fingerprint import state_folder
from tasks.stage import Stage, run_stage
from tasks.weights import check_weights

if TYPE_CHECKING:
    from trl.results import AttackResult
    from trl.threat import Threat


def attack_model(stage: Stage) -> None:
    """Write attack.json, the curve of robust accuracy against epsilon, and each sample's adversarial and results."""
    import torch
    from safetensors.torch import save

    from trl.attacks import build_attack, build_attack_at
    from trl.common.files import write_atomic
    from trl.common.progress import say
    from trl.data import load_splits
    from trl.evaluation import epsilon_curve, evaluate
    from trl.evaluation.intervals import accuracy
    from trl.models import load_model
    from trl.nn.device import choose_device
    from trl.results import Accuracy, CurvePoint, FurtherThreat
    from trl.threat import build_threat

    recipe, config, paths = stage.recipe, stage.recipe.attack, stage.model_paths
    model = load_model(paths.model, choose_device())
    weights = check_weights(paths)
    test = load_splits(stage.paths.data).test
    images, labels = test.images[: config.samples], test.labels[: config.samples]
    threat = build_threat(**recipe.threat.model_dump())
    attacks = {name: build_attack(spec.name, threat, **spec.options) for name, spec in config.attacks.items()}
    state = state_folder("attack", stage, weights)
    found = evaluate(
        *(model, images, labels, attacks, threat, config.batch_size, stage.seed),
        precision=config.precision,
        state=state,
    )

    def make_threat(epsilon: float) -> "Threat":
        return replace(threat, epsilon=epsilon)

    spec = config.curve.attack
    make_attack = partial(build_attack_at, name=spec.name, threat=threat, **spec.options)
    n = config.curve.samples
    points = epsilon_curve(
        *(model, images[:n], labels[:n], make_attack, make_threat, config.curve.epsilons),
        *(config.batch_size, stage.seed, config.precision),
    )
    result, worst, threats = found.result(), [found.worst], {}
    for name, further in config.threats.items():
        allowed = further.model_dump(exclude={"attacks"})
        other = build_threat(**allowed)
        attacks = {key: build_attack(spec.name, other, **spec.options) for key, spec in further.attacks.items()}
        under = evaluate(
            *(model, images, labels, attacks, other, config.batch_size, stage.seed),
            precision=config.precision,
            state=state,
        )
        threats[name] = FurtherThreat(**allowed, robust=under.result().robust)
        result.warnings += [f"threat {name}: {sign.name}: {sign.message}" for sign in under.signs]
        worst.append(under.worst)
    if threats:
        result.threats = threats
        result.union = Accuracy(**accuracy(torch.stack(worst).all(0)))

    stored = {"adversarials": found.adversarials, **{f"correct.{k}": v for k, v in found.correct.items()}}
    stage.check_inputs()
    write_atomic(paths.adversarials / "adversarials.safetensors", save(stored, found.caveats))
    CurvePoint.write(paths.metrics, [CurvePoint(attack=spec.name, **point._asdict()) for point in points])
    result.settings = config.model_dump(mode="json")
    result.write(paths.metrics)
    shutil.rmtree(state)
    say(_line(stage, result))
    for warning in result.warnings:
        say(f"warning: {stage.method}-{stage.seed}: {warning}")


def _line(stage: Stage, result: "AttackResult") -> str:
    from trl.results import WORST

    robust = "  ".join(f"{name} {figures.accuracy:.1%}" for name, figures in result.robust.items())
    further = "".join(f"  {name} {found.robust[WORST].accuracy:.1%}" for name, found in result.threats.items())
    return f"{stage.method}-{stage.seed}: clean {result.clean.accuracy:.1%}  {robust}{further}"


if __name__ == "__main__":
    sys.exit(run_stage(attack_model, per_model=True))
