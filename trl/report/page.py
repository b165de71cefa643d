"""The comparison as one self-contained HTML page, with the figures and the table as files beside it."""

import base64
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic_core import to_jsonable_python

from trl.report.figures import save_figures
from trl.report.results import Results
from trl.report.table import comparison, describe_seeds, detection, representation, show_epsilon, write_csv

NORMS = {"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1"}

# Of each figure: its heading, what a screen reader says instead of it, and its caption.
TEXTS = {
    "robust_accuracy_vs_epsilon": (
        "Robust accuracy against ε",
        "Line chart of accuracy against the size of the perturbation",
        "Accuracy as the attacker may change the image more; the dashed line is the threat of the"
        " tables above, the bands show {band}.",
    ),
    "attacks": (
        "Attacks one by one",
        "Bar chart of accuracy without attack, under each attack and under the worst of them",
        "The same numbers as in the comparison table; whiskers show {band}.",
    ),
    "roc": (
        "Detection of adversarial images",
        "ROC curves of the detector, one panel per attack",
        "Share of adversarial images that the detector flags against share of natural images flagged by mistake;"
        " the diagonal is guessing{std}.",
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
    """Write index.html, comparison.csv and the figures (PNG, also inside the page) to `folder`; return the page's path.

    `parameters` is the recipe as a mapping with all defaults filled in: the page quotes it, and takes the data set from
    `data.name` and the threat from `threat.norm` and `threat.epsilon`. The same input gives the same bytes.
    """
    folder = Path(folder)
    figures = [_figure(path, results) for path in save_figures(results, folder)]
    write_csv(results, folder / "comparison.csv")
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
        results=results,
        seeds=describe_seeds(results),
        detector=results.models[0].detect.detector,
        detection_epsilon=show_epsilon(results.models[0].detect.epsilon),
        comparison=comparison(results),
        detection=detection(results),
        representation=representation(results),
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


def _threat(norm: str, epsilon: float) -> str:
    return f"{NORMS.get(norm, norm)}, ε = {show_epsilon(epsilon)}"
