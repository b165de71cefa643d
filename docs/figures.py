"""Draw the figures of the documentation from digits' results: `python docs/figures.py`, in the project's folder."""

from pathlib import Path

from trl.report.figures import detector_aucs, robust_accuracy_vs_epsilon
from trl.results import load_results

IMAGES = Path(__file__).parent / "images"


def main() -> None:
    """Write docs/images/robust_accuracy.png and docs/images/detectors.png."""
    results = load_results(Path("metrics/digits"), ["um", "at", "alp", "tla"], [0])
    for name, draw in (("robust_accuracy", robust_accuracy_vs_epsilon), ("detectors", detector_aucs)):
        figure = draw(results)
        figure.set_size_inches(8, 4.0 if name == "robust_accuracy" else 6.4)
        figure.savefig(IMAGES / f"{name}.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
