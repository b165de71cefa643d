"""Where each stage reads and writes: the same layout as dvc.yaml, below the project's root."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RecipePaths:
    """The files of one recipe."""

    recipe: str

    @property
    def data(self) -> Path:
        """Prepared data (stage prepare)."""
        return Path("outputs", self.recipe, "data")

    @property
    def metrics(self) -> Path:
        """One folder of small result files per model."""
        return Path("metrics", self.recipe)

    @property
    def comparison(self) -> Path:
        """The comparison as a table: the one result that Git keeps (stage report)."""
        return Path("metrics", f"{self.recipe}.csv")

    @property
    def weights(self) -> Path:
        """A file per trained model with its weights' SHA-256, for stages that need all models (stage train)."""
        return Path("outputs", self.recipe, "weights")

    def ensemble(self, name: str) -> Path:
        """The result files of one ensemble (stage ensemble)."""
        return self.metrics / "ensembles" / name

    @property
    def report(self) -> Path:
        """The comparison page, and its figures (stage report)."""
        return Path("outputs", self.recipe, "report")

    def proxy(self, name: str) -> Path:
        """Samples of a proxy, with a contact sheet (stage proxy)."""
        return Path("outputs", self.recipe, "proxies", name)

    def proxy_metrics(self, name: str) -> Path:
        """The small result files of a proxy (stage proxy)."""
        return self.metrics / "proxies" / name

    def mix(self, method: str) -> Path:
        """Which samples a method trains on (stage mix)."""
        return Path("outputs", self.recipe, "mix", method)

    def model(self, method: str, seed: int) -> "ModelPaths":
        """The files of one trained model."""
        return ModelPaths(Path("outputs", self.recipe, f"{method}-{seed}"), self.metrics / f"{method}-{seed}")


@dataclass(frozen=True)
class ModelPaths:
    """The files of one trained model: large ones below `outputs`, small ones below `metrics`."""

    outputs: Path
    metrics: Path

    @property
    def model(self) -> Path:
        """Weights and architecture (stage train)."""
        return self.outputs / "model"

    @property
    def adversarials(self) -> Path:
        """The worst-case adversarial image of every test sample (stage attack)."""
        return self.outputs / "adversarials"

    @property
    def certificates(self) -> Path:
        """The certified prediction and radius of every test sample (stage certify)."""
        return self.outputs / "certificates"

    @property
    def detector(self) -> Path:
        """The detector to deploy, with its threshold (stage detect)."""
        return self.outputs / "detector"
