"""The comparison as one self-contained HTML page, with the figures as files beside it."""

import base64
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic_core import to_jsonable_python

from trl.report.figures import save_figures
from trl.report.table import (
    certificates,
    comparison,
    describe_seeds,
    detection,
    detectors,
    representation,
    show_epsilon,
)
from trl.results import Results
from trl.spec import describe_spec

NORMS = {"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1"}

# Of each figure: its heading, what a screen reader says instead of it, and its caption.
TEXTS = {
    "robust_accuracy_vs_epsilon": (
        "Robust accuracy against ε",
        "Line chart of accuracy against the size of the perturbation",
        "Accuracy as the attacker may change the image more; the dotted line is the threat of the"
        " tables above, the bands show {band}.",
    ),
    "certified_accuracy": (
        "Certified accuracy against the radius",
        "Line chart of certified accuracy against the l2 radius",
        "Share of images that the smoothed classifier gets right, whatever an attacker does within that ℓ2 radius;"
        " bands show {band}.",
    ),
    "attacks": (
        "Attacks one by one",
        "Bar chart of accuracy without attack, under each attack and under the worst of them",
        "The same numbers as in the comparison table; whiskers show {band}.",
    ),
    "roc": (
        "Detection of adversarial images",
        "ROC curves of the deployed detector, one panel per attack",
        "Share of adversarial images that the detector flags against share of natural images flagged by mistake;"
        " the diagonal is guessing. A curve below it: attacked images look more natural than natural ones{std}.",
    ),
    "scores": (
        "What the detector sees",
        "Histograms of the deployed detector's scores of natural and attacked images, one panel per method",
        "Images to the right of the threshold are rejected. Adaptive attacks move an image to the left of it; the more"
        " its distribution lies over the grey one, the less there is to detect. Models of seed {seed};"
        " the outermost bins also count the scores beyond them.",
    ),
    "detection_vs_epsilon": (
        "Detection against ε",
        "Line chart of the deployed detector's AUC against the size of the perturbation",
        "AUC under an attack that knows nothing of the detector (solid) and in the worst case over all attacks"
        " (dashed), as the attacker may change the image more; bands show {band}.",
    ),
    "detectors": (
        "Detectors, static against adaptive",
        "Dot plot of every detector's AUC without and with an attacker who knows it, one panel per method",
        "What an attacker who knows the detector takes from it: the longer the bar, the less its static AUC was worth;"
        " the dotted line is guessing, whiskers show {band}.",
    ),
    "ensembles": (
        "Several models at once",
        "Bar chart of the share of images that fool all models and each of them, by strategy of the attack",
        "Images misclassified without attack, by the attack on the average of the models, and by min-max, which weighs"
        " the models for each image; the weights below the names are means over the images{std}.",
    ),
    "training_curves": (
        "Training",
        "Line charts of training loss and of validation accuracy without and under attack, per epoch",
        "The losses are of different objectives, so compare their shapes and not their heights{std}.",
    ),
    "triplet": (
        "Triplets",
        "Line charts of the share of active triplets and of the distances to positives and negatives, per epoch",
        "A triplet is active while its negative is not farther from the anchor than its positive by the margin{std}.",
    ),
    "tsne": (
        "Embeddings",
        "Scatter plots of embeddings in the plane, one panel per method",
        "t-SNE of natural (dots) and adversarial images (crosses) of the seed {seed} models, coloured by true class:"
        " a cross among dots of another colour has been moved to a false class.",
    ),
}


def write_report(results: Results, recipe_name: str, parameters: Mapping[str, Any], folder: Path) -> Path:
    """Write index.html and the figures (PNG, also inside the page) to `folder`; return the page's path.

    `parameters` is the recipe as a mapping: the page quotes it as it is written, and takes the data set from
    `data.name` and the threat from `threat.norm` and `threat.epsilon`. The same input gives the same bytes.
    """
    folder = Path(folder)
    figures = [_figure(path, results) for path in save_figures(results, folder)]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = folder / "index.html"
    html = environment.get_template("template.html").render(
        recipe=recipe_name,
        data=parameters["data"]["name"],
        threat=_threat(**parameters["threat"]),
        threats={
            name: _threat(found.norm, found.epsilon, found.region)
            for name, found in results.models[0].attack.threats.items()
        },
        results=results,
        seeds=describe_seeds(results),
        detect=results.models[0].detect,
        detection_epsilon=show_epsilon(results.models[0].detect.epsilon),
        comparison=comparison(results),
        detection=detection(results),
        detectors=detectors(results),
        representation=representation(results),
        certificates=certificates(results),
        smoothed=results.of(results.certified[0])[0].certify if results.certified else None,
        figures=figures,
        parameters=yaml.safe_dump(to_jsonable_python(parameters), sort_keys=False, allow_unicode=True),
        percent=lambda share: "–" if math.isnan(share) else f"{100 * share:.1f}",
    )
    page.write_text(html, encoding="utf-8")
    return page


def _figure(path: Path, results: Results) -> dict[str, str]:
    heading, alt, caption = TEXTS[path.stem]
    several = len(results.seeds) > 1
    words = {
        "band": "one standard deviation over seeds" if several else "95\u00a0% intervals",
        "std": "; bands show one standard deviation over seeds" if several else "",
        "seed": str(results.seeds[0]),
    }
    return {
        "name": path.stem,
        "heading": heading,
        "alt": f"{alt}, for {', '.join(results.methods)}",
        "caption": caption.format(**words),
        "png": base64.b64encode(path.read_bytes()).decode(),
    }


def _threat(norm: str, epsilon: float, region: Mapping[str, Any] | None = None) -> str:
    inside = f", inside {describe_spec(region)}" if region else ""
    return f"{NORMS.get(norm, norm)}, ε = {show_epsilon(epsilon)}{inside}"
