"""Stage train: train one model by one method, going on from its checkpoint if an earlier run was interrupted."""

import contextlib
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.fingerprint import fingerprint
from tasks.live import ModelRun
from tasks.processes import share_work
from tasks.runs import training_settings
from tasks.stage import Stage, run_stage

if TYPE_CHECKING:
    from trl.data import ImageSet


def train_model(stage: Stage) -> None:
    """Write the weights of the best validated epoch, the curves and the run's figures."""
    share_work(train_on, stage)


def train_on(stage: Stage, device: str) -> None:
    """Train on one device, alone or as one of several processes, of which the first writes the results."""
    import torch

    from trl.attacks import build_attack, build_attack_at
    from trl.common.errors import TrlError
    from trl.common.files import write_atomic
    from trl.common.progress import say
    from trl.common.seeds import derive_seed
    from trl.data import TrainingData, load_splits
    from trl.models import build_model, save_model, weights_sha256
    from trl.nn.parallel import processes
    from trl.nn.precision import has_fast_bf16
    from trl.objectives import build_mixed, build_objective
    from trl.objectives.base import Setting
    from trl.results import Epoch, TrainResult
    from trl.threat import build_threat
    from trl.training import Checkpoint, train

    recipe, config = stage.recipe, stage.recipe.train_of(stage.method)
    splits = load_splits(stage.paths.data)
    if config.batch_size > len(splits.train):
        raise TrlError(
            f"recipes.{stage.recipe_name}.train.batch_size: {config.batch_size} is more than the "
            f"{len(splits.train)} training images"
        )
    first = processes().rank == 0
    if config.precision == "bf16" and not has_fast_bf16(device) and first:
        say(f"warning: {device} was measured to be no faster in bf16; train.precision: fp32 is as quick there")
    torch.manual_seed(derive_seed(stage.seed, "weights"))
    architecture = recipe.model_of(stage.method)
    model = build_model(architecture.name, len(splits.classes), splits.train.shape, **architecture.options)
    model = model.to(device)
    augment = config.augment

    def augmented(images: "ImageSet") -> TrainingData:
        return TrainingData(images, device, augment.crop, augment.flip, augment.saturation)

    setting = Setting(
        data=augmented(splits.train),
        threat=build_threat(**recipe.threat.model_dump()),
        label_smoothing=config.label_smoothing,
        seed=stage.seed,
        embedding=model.head.in_features,
    )
    method = recipe.methods[stage.method]
    samples, content = _samples(stage)
    if method.proxy and samples:
        proxies, size = augmented(samples), method.proxy.batch * config.batch_size
        objective = build_mixed(method.name, setting, proxies, size, gamma=method.proxy.gamma, **method.options)
    else:
        objective = build_objective(method.name, setting, **method.options)
    validation_attack = build_attack(
        config.validation.attack.name, objective.threat, **config.validation.attack.options
    )
    name = fingerprint("train", stage, ("model", "threat", "train", "methods"), splits.sha256 + content)
    checkpoint = Checkpoint(
        Path("checkpoints", stage.recipe_name, f"{stage.method}-{stage.seed}-{name}.pt"),
        seconds=float(os.environ.get("TRL_CHECKPOINT_SECONDS", "30")),
        on_save=stage.check_inputs,
    )
    opened = ModelRun.open(stage, name) if first else contextlib.nullcontext()
    with opened as run:
        outcome = train(
            model,
            objective,
            setting,
            partial(build_attack_at, name=config.attack.name, threat=objective.threat, **config.attack.options),
            splits.validation,
            validation_attack,
            config,
            checkpoint=checkpoint,
            on_epoch=lambda row: run.log(Epoch(**row)) if run else None,
        )
        if not run:
            return

        stage.check_inputs()
        model.load_state_dict(outcome.state)
        paths = stage.model_paths
        save_model(model, paths.model)
        weights, best = weights_sha256(paths.model), outcome.best
        epochs = [Epoch(**row) for row in outcome.history]
        Epoch.write(paths.metrics, epochs)
        TrainResult(
            val_clean=best["val_clean"],
            val_robust=best["val_robust"],
            best_epoch=best["epoch"],
            epochs=config.epochs,
            seconds=round(sum(row["seconds"] for row in outcome.history), 1),
            parameters=sum(p.numel() for p in model.parameters()),
            device=torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
            weights=weights,
            fingerprint=name,
            settings=training_settings(stage),
        ).write(paths.metrics)
        write_atomic(stage.paths.weights / f"{stage.method}-{stage.seed}.sha256", f"{weights}\n".encode())
        checkpoint.remove()
        run.end(weights, epochs)
    say(
        f"{stage.method}-{stage.seed}: best epoch {best['epoch']} of {config.epochs}, on validation images "
        f"clean {best['val_clean']:.1%}, robust {best['val_robust']:.1%}"
    )


def _samples(stage: Stage) -> "tuple[ImageSet | None, str]":
    """The samples of the method's proxy, and their hash; None and "" without one. TrlError if they are others."""
    from trl.common.arrays import digest
    from trl.common.errors import TrlError
    from trl.data import load_samples
    from trl.results import MixResult

    if not stage.recipe.methods[stage.method].proxy:
        return None, ""
    mix = MixResult.read(stage.paths.mix(stage.method))
    folder = stage.paths.proxy(mix.proxy)
    samples = load_samples(folder)
    if digest({"images": samples.images, "labels": samples.labels}) != mix.samples:
        raise TrlError(f"{folder}: these are not the samples that {mix.file} names; run the stages proxy and mix")
    return samples, mix.samples


if __name__ == "__main__":
    sys.exit(run_stage(train_model, per_model=True))
