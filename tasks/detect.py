"""Stage detect: how well one model's embeddings give adversarial images away, and what the attack does to them."""

import sys
from typing import Any

from tasks.stage import Stage, run_stage
from tasks.tracking import record_model


def detect(stage: Stage) -> None:
    """Write detect.json, the ROC curves and the t-SNE of natural and adversarial embeddings."""
    import torch

    from trl.attacks import build_attack
    from trl.data import load_splits
    from trl.detectors import build_detector
    from trl.device import choose_device
    from trl.evaluation import embed, perturb
    from trl.evaluation.detection import by_subset, detection_auc, roc_points
    from trl.evaluation.representation import knn_accuracy, shift_ratios, tsne
    from trl.files import write_csv, write_json
    from trl.models import load_model
    from trl.progress import say
    from trl.randomness import derive_seed
    from trl.threat import build_threat

    recipe, config, folder = stage.recipe, stage.recipe.detect, stage.model_paths.metrics
    model = load_model(stage.model_paths.model, choose_device())
    splits = load_splits(stage.paths.data)
    images, labels = splits.test.images[: config.samples], splits.test.labels[: config.samples]
    epsilon = recipe.threat.epsilon if config.epsilon is None else config.epsilon
    threat = build_threat(recipe.threat.norm, epsilon)

    train_features, _ = embed(model, splits.train.images, config.batch_size)
    natural_features, natural_logits = embed(model, images, config.batch_size)
    detector = build_detector(config.detector.name, **config.detector.options).fit(train_features, splits.train.labels)
    natural_scores = detector.score(natural_features)

    auc: dict[str, dict[str, float | None]] = {"all": {}, "successful": {}, "failed": {}}
    roc: list[dict[str, Any]] = []
    for position, (name, spec) in enumerate(config.attacks.items()):
        attack = build_attack(spec.name, threat, **spec.options)
        adversarials = perturb(model, images, labels, attack, threat, config.batch_size, derive_seed(stage.seed, name))
        features, logits = embed(model, adversarials, config.batch_size)
        succeeded = logits.argmax(1) != labels
        scores = detector.score(features)
        for subset, area in by_subset(detection_auc, natural_scores, scores, succeeded).items():
            auc[subset][name] = area
        for subset, points in by_subset(roc_points, natural_scores, scores, succeeded).items():
            roc += [{"attack": name, "subset": subset, "fpr": fpr, "tpr": tpr} for fpr, tpr in points or ()]
        if position == 0:  # the analyses of the embeddings are made under the first attack
            first_features, predicted = features, logits.argmax(1)

    r, r_prime = shift_ratios(natural_features, labels, first_features, labels, predicted)
    knn = {
        kind: knn_accuracy(train_features, splits.train.labels, features, labels, config.neighbours)
        for kind, features in (("natural", natural_features), ("adversarial", first_features))
    }
    write_json(
        folder / "detect.json",
        {
            "epsilon": epsilon,
            "detector": config.detector.name,
            "auc": auc["all"],
            "auc_successful": auc["successful"],
            "auc_failed": auc["failed"],
            "representation": {"r": r, "r_prime": r_prime},
            "knn": knn,
        },
    )
    write_csv(folder / "roc.csv", roc)

    generator = torch.Generator().manual_seed(derive_seed(stage.seed, "tsne"))
    some = torch.randperm(len(labels), generator=generator)[: config.tsne_samples // 2]
    places = tsne(torch.cat([natural_features[some], first_features[some]]), seed=stage.seed).tolist()
    kinds = ["natural"] * len(some) + ["adversarial"] * len(some)
    classes = labels[some].tolist() * 2
    guesses = natural_logits.argmax(1)[some].tolist() + predicted[some].tolist()
    write_csv(
        folder / "tsne.csv",
        [
            {"x": round(x, 3), "y": round(y, 3), "label": label, "predicted": guess, "kind": kind}
            for (x, y), label, guess, kind in zip(places, classes, guesses, kinds, strict=True)
        ],
    )
    say(f"{stage.method}-{stage.seed}: " + "  ".join(f"AUC {name} {value:.3f}" for name, value in auc["all"].items()))
    record_model(stage)


if __name__ == "__main__":
    sys.exit(run_stage(detect, per_model=True))
