"""params.yaml as typed, validated objects, one class per section. All settings of the pipeline live here."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from trl.common.errors import TrlError
from trl.common.numbers import Count, Fraction, NonNegative, Positive, Real
from trl.registry import explain, refuse
from trl.spec import AS_WRITTEN, NAMED_BY_KEY, Name, RegionSpec, Section, Spec, SpecAndMore, spec_of

if TYPE_CHECKING:
    AttackSpec = Spec
    DetectorSpec = Spec
    ModelSpec = Spec
else:
    AttackSpec = spec_of("trl.attacks:ATTACKS", former="attack")
    DetectorSpec = spec_of("trl.detectors:DETECTORS")
    ModelSpec = spec_of("trl.models:MODELS")
Attacks = Annotated[dict[Name, AttackSpec], NAMED_BY_KEY, Field(min_length=1)]


class ThreatSection(Section):
    """Perturbations of at most `epsilon` in `norm`, for images in [0, 1]; inside `region` alone if there is one."""

    norm: Literal["linf", "l2", "l1"] = "linf"
    epsilon: NonNegative
    region: RegionSpec | None = None


class Optimizer(Section):
    """Adam, AdamW or SGD; weight decay applies only to weight matrices and filters, not to biases and norm layers."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Positive
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: NonNegative = 0.0


class Schedule(Section):
    """Learning-rate schedule in epochs: constant, steps (× `gamma` at each milestone), cosine to 0, or triangle."""

    name: Literal["constant", "steps", "cosine", "triangle"] = "constant"
    milestones: tuple[NonNegative, ...] = ()
    gamma: Annotated[Real, Field(gt=0, le=1)] = 0.1
    warmup_epochs: NonNegative = 0.0


class Augment(Section):
    """Augmentation of training images on the device: `crop` zero-padding in pixels, `flip`, `saturation` jitter."""

    crop: Annotated[int, Field(ge=0)] = 0
    flip: bool = False
    saturation: NonNegative = 0.0


class Validation(Section):
    """Model selection on validation images: every `every` epochs, under `attack`."""

    every: Count = 1
    attack: AttackSpec


class WeightPerturbation(Section):
    """AWP (Wu et al. 2020): gradients at weights that are moved against training, each layer by `gamma` of its norm.

    It begins after `warmup_epochs`, and costs one more forward and backward pass per step.
    """

    gamma: Positive = 0.005
    warmup_epochs: NonNegative = 0.0


class Train(Section):
    """How every method of a recipe is trained."""

    epochs: Count
    batch_size: Count
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    label_smoothing: Fraction = 0.0
    augment: Augment = Augment()
    precision: Literal["fp32", "bf16"] = "fp32"
    clip_norm: Positive | None = None
    ema: Annotated[Real, Field(gt=0, lt=1)] | None = None
    weight_perturbation: WeightPerturbation | None = None
    attack: AttackSpec
    epsilon_warmup_epochs: NonNegative = 0.0  # epsilon grows from 0; without it, small networks stay at chance
    validation: Validation


class Data(SpecAndMore):
    """The data set with its options, and how many training images to hold out (chosen by `split_seed`).

    `train` limits the number of images that are left to train on; null keeps them all.
    All in one mapping: `{name: image_folder, path: data/flowers, size: 32, validation: 150}`.
    """

    entry = "trl.data:DATASETS"

    validation: Count
    split_seed: Annotated[int, Field(ge=0)] = 0
    train: Count | None = None


class Proxy(SpecAndMore):
    """A proxy with its options: `count` images are drawn from it by `seed`.

    `select` keeps this share of them, the least detectable; null keeps all.
    All in one mapping: `{name: kde, neighbours: 5, count: 5000}`.
    """

    entry = "trl.proxies:PROXIES"

    count: Count
    seed: Annotated[int, Field(ge=0)] = 0
    select: Annotated[Real, Field(gt=0, le=1)] | None = None


class Mix(Section):
    """Training on a proxy, too: γ·L(real) + (1 - γ)·L(proxy), with `batch` proxies for each real image of a step.

    `from` names one of the recipe's proxies.
    """

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    source: Name = Field(alias="from")
    gamma: Annotated[Real, Field(ge=0, le=1)] = 0.4
    batch: Count = 1


class Method(SpecAndMore):
    """An objective with its options, and what this method alone trains with: a model, a weight perturbation, and a
    proxy.

    All in one mapping: `{name: at, model: {name: deep_pursuit, sweeps: 10}}`. Without them, those of the recipe.
    """

    entry, former = "trl.objectives:OBJECTIVES", "objective"

    model: ModelSpec | None = None
    weight_perturbation: WeightPerturbation | None = None
    proxy: Mix | None = None

    @model_serializer(mode="wrap")
    def _without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Results and cards show only what is given."""
        own = ("model", "weight_perturbation", "proxy")
        return {key: value for key, value in handler(self).items() if key not in own or value is not None}


class Curve(Section):
    """Robust accuracy as a function of epsilon: one attack, its step size scaled with epsilon."""

    attack: AttackSpec
    epsilons: Annotated[tuple[NonNegative, ...], Field(min_length=1)]
    samples: Count | None = None


class FurtherThreatSection(ThreatSection):
    """A threat beside the recipe's, with the attacks for its own worst case."""

    attacks: Attacks = Field(default={"autoattack": None}, validate_default=True)


class AttackSection(Section):
    """The attacks behind the reported robust accuracy, on the first `samples` test images (all if null).

    `threats`: further ones by name, each with its own attacks; an image counts for the union if it withstands all.
    `precision` bf16 lets gradient attacks search in bf16 where that is faster; verdicts are always in fp32.
    """

    samples: Count | None = None
    batch_size: Count = 500
    precision: Literal["fp32", "bf16"] = "fp32"
    attacks: Attacks
    threats: dict[Name, FurtherThreatSection] = Field(default_factory=dict)
    curve: Curve

    @model_validator(mode="after")
    def _named_apart(self) -> "AttackSection":
        for name in self.threats:
            if name in ("clean", "worst", "union", *self.attacks):
                raise refuse(f"{name!r} names another figure: choose another name", ("threats",))
        return self


class Ensemble(Section):
    """The models of `methods` attacked together: images that fool all of them at once, by min-max and by averaging.

    On the first `samples` test images (all if null), with the options of `trl.attacks.weighted_minmax`.
    """

    methods: Annotated[tuple[str, ...], Field(min_length=2)]
    samples: Count | None = None
    batch_size: Count = 500
    steps: Count = 40
    step_size: Positive | None = None
    weight_step: Positive = 1 / 50
    gamma: NonNegative = 4.0


class Adaptive(Section):
    """Attacks on classifier and detector at once, on the first `samples` images (all if null)."""

    samples: Count | None = None
    attacks: Attacks


class DetectionCurve(Section):
    """AUC of the deployed detector as a function of epsilon, under the first static and the first adaptive attack."""

    epsilons: Annotated[tuple[NonNegative, ...], Field(min_length=1)]
    samples: Count | None = None


class Detection(Section):
    """The detectors to compare, and the one to deploy (`detector`).

    `false_alarms`: the fraction of natural images that may be rejected; thresholds are calibrated for it on the
    validation images. `attacks` ignore the detectors, `adaptive` attacks target them. `epsilon` null means the epsilon
    of the recipe's threat.
    """

    detectors: Annotated[dict[Name, DetectorSpec], NAMED_BY_KEY, Field(min_length=1)]
    detector: Name
    false_alarms: Annotated[Real, Field(gt=0, lt=1)] = 0.01
    epsilon: NonNegative | None = None
    samples: Count | None = None
    batch_size: Count = 500
    attacks: Attacks
    adaptive: Adaptive
    curve: DetectionCurve
    neighbours: Count = 50
    tsne_samples: Annotated[int, Field(ge=50)] = 1000

    @model_validator(mode="after")
    def _known(self) -> "Detection":
        if self.detector not in self.detectors:
            raise refuse(
                f"unknown detector {self.detector!r}; detectors has {', '.join(self.detectors)}", ("detector",)
            )
        for name in ("adaptive", "stage attack"):
            if name in self.attacks:
                raise refuse(
                    f"{name!r} is reserved for a worst case over several attacks: choose another name", ("attacks",)
                )
        return self


class Certify(Section):
    """Randomized smoothing on the first `images` test images (all if null); `certify` explains the other settings.

    `sigma` is that of training with the objective smoothing. `radii`: where certified accuracy is reported, in ℓ2.
    """

    sigma: Positive
    selection: Count = 100
    samples: Count = 10_000
    alpha: Annotated[Real, Field(gt=0, lt=1)] = 0.001
    images: Count | None = None
    batch_size: Count = 1000
    radii: Annotated[tuple[NonNegative, ...], Field(min_length=1)]


class Recipe(Section):
    """One experiment: methods compared with the same data, threat, training and evaluation.

    They train the same model, too, unless a method names its own.
    """

    data: Data
    model: ModelSpec
    threat: ThreatSection
    train: Train
    methods: Annotated[dict[Name, Method], NAMED_BY_KEY, Field(min_length=1)]
    attack: AttackSection
    detect: Detection
    certify: Certify | None = None
    ensembles: dict[Name, Ensemble] = Field(default_factory=dict)
    proxies: Annotated[dict[Name, Proxy], NAMED_BY_KEY] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _proxies_known(self) -> "Recipe":
        for name, method in self.methods.items():
            if method.proxy and method.proxy.source not in self.proxies:
                known = ", ".join(self.proxies) or "none"
                raise refuse(f"{method.proxy.source!r} is not among proxies ({known})", ("methods", name, "proxy"))
        return self

    def model_of(self, method: str) -> Spec:
        """The model that `method` trains: its own, or else the recipe's."""
        return self.methods[method].model or self.model

    def train_of(self, method: str) -> Train:
        """How `method` is trained."""
        own = self.methods[method].weight_perturbation
        return self.train.model_copy(update={"weight_perturbation": own}) if own else self.train

    def checked(self) -> "Recipe":
        """The recipe with all options checked and defaults filled in, if it was loaded `as_written`."""
        return Recipe.model_validate(self)


class Deploy(Section):
    """Which model is served: the champion under `name` in MLflow's registry is the one with the best `figure`.

    Figures are measured on validation images: `auc` and `adaptive_auc` of the deployed detector, and the accuracy of
    classifier and detector together on natural images (`clean`) and under all attacks (`robust`).
    """

    name: Name = "trl-detector"
    figure: Literal["auc", "adaptive_auc", "clean", "robust"] = "robust"


class Params(Section):
    """All of params.yaml. The lists choose what runs of what the recipe defines."""

    recipe: Name
    methods: Annotated[tuple[Name, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, strict=True)], ...], Field(min_length=1)]  # DVC reads them itself
    proxies: tuple[Name, ...] = ()
    on_proxies: tuple[Name, ...] = ()
    certify: tuple[Name, ...] = ()
    ensembles: tuple[Name, ...] = ()
    deploy: Deploy = Deploy()
    recipes: dict[Name, Recipe]

    @model_validator(mode="after")
    def _consistent(self) -> "Params":
        if self.recipe not in self.recipes:
            raise refuse(f"unknown recipe {self.recipe!r}; known: {', '.join(self.recipes)}", ("recipe",))
        known: dict[str, Mapping[str, Any]] = {"methods": self.selected.methods, "proxies": self.selected.proxies}
        for key, kind in (("methods", "methods"), ("on_proxies", "methods"), ("proxies", "proxies")):
            for name in getattr(self, key):
                if name not in known[kind]:
                    has = f"recipes.{self.recipe}.{kind} has {', '.join(known[kind]) or 'none'}"
                    raise refuse(f"unknown {'method' if kind == 'methods' else 'proxy'} {name!r}; {has}", (key,))
        self._check_proxies()
        for method in self.certify:
            if method not in self.compared:
                raise refuse(f"{method!r} is not among methods ({', '.join(self.compared)})", ("certify",))
        if self.certify and self.selected.certify is None:
            raise refuse(f"recipes.{self.recipe} has no section certify: add one, or set certify to []", ("certify",))
        for ensemble in self.ensembles:
            defined = self.selected.ensembles
            if ensemble not in defined:
                has = ", ".join(defined) or "none"
                raise refuse(
                    f"unknown ensemble {ensemble!r}; recipes.{self.recipe}.ensembles has {has}", ("ensembles",)
                )
            if missing := [name for name in defined[ensemble].methods if name not in self.compared]:
                raise refuse(f"{ensemble!r} needs {', '.join(missing)} in `methods`, too", ("ensembles",))
        for key in ("methods", "seeds", "proxies", "on_proxies", "certify", "ensembles"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise refuse(f"contains a value twice: {list(values)}", (key,))
        return self

    def _check_proxies(self) -> None:
        """Methods that train on a proxy have a list, and stages, of their own."""
        for method in self.methods:
            if self.selected.methods[method].proxy:
                raise refuse(f"{method!r} trains on a proxy: list it in on_proxies instead", ("methods",))
        for method in self.on_proxies:
            mix = self.selected.methods[method].proxy
            if not mix:
                raise refuse(f"{method!r} trains on no proxy: list it in methods instead", ("on_proxies",))
            if mix.source not in self.proxies:
                raise refuse(f"{method!r} trains on {mix.source}: list that in proxies, too", ("on_proxies",))

    @property
    def compared(self) -> tuple[str, ...]:
        """All methods whose models are trained and compared: those on real images alone, then those on proxies."""
        return (*self.methods, *self.on_proxies)

    @property
    def selected(self) -> Recipe:
        """The recipe that runs."""
        return self.recipes[self.recipe]


def load_params(path: str | Path = "params.yaml", *, as_written: bool = False) -> Params:
    """Read and check a params file; TrlError says which key is wrong, why, and what is allowed.

    `as_written` skips what needs PyTorch: names and options of attacks, models, detectors, objectives and data sets are
    not checked and have no defaults filled in. Enough to display them.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise TrlError(f"{path}: cannot be read ({error.strerror}); run from the project's root") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a date that does not exist
        raise TrlError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return check_params(raw, str(path), as_written=as_written)


def check_params(raw: Any, source: str = "params", *, as_written: bool = False) -> Params:
    """Check parameters that are already in memory; otherwise like `load_params`."""
    try:
        return Params.model_validate(raw, context=AS_WRITTEN if as_written else None)
    except ValidationError as error:
        raise TrlError(f"{source}: {explain(error, Params)}") from None
