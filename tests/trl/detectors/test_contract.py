"""What every detector promises, whatever it reads."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.natural_embeddings import embeddings
from trl.common.errors import TrlError
from trl.detectors import DETECTORS, Calibration, Detector, build_detector, load_detector, save_detector
from trl.detectors.base import BATCH, Layer

# all options that change what is learnt
VARIANTS = [
    ("energy", {}),
    *[("gaussian", {"covariance": covariance}) for covariance in ("full", "tied", "diagonal")],
    *[("gmm", {"covariance": covariance, "components": 3}) for covariance in ("full", "diagonal")],
    ("knn", {"neighbours": 5}),
    ("lid", {"neighbours": 5}),
    ("mahalanobis", {}),
    ("max_logit", {}),
]
variants = pytest.mark.parametrize(("name", "options"), VARIANTS)
FROM_LOGITS = ("energy", "max_logit")


def fitted(name: str, options: dict, train: Tensor, labels: Tensor) -> Detector:
    return build_detector(name, **options).fit(train, labels)


def test_all_are_tested() -> None:
    assert {name for name, _ in VARIANTS} == set(DETECTORS.names())


@variants
def test_deterministic_and_float64(name: str, options: dict) -> None:
    train, labels = embeddings()
    torch.manual_seed(0)
    first = fitted(name, options, train, labels)
    torch.manual_seed(1)
    second = fitted(name, options, train.double(), labels)
    scores = first.score(train)
    assert (scores.shape, scores.dtype) == ((90,), torch.float64)
    assert torch.equal(scores, second.score(train.double()))
    assert torch.equal(scores, first(train))
    assert all(t.dtype == torch.float64 for key, t in first.state_dict().items() if key != "width")
    assert not list(first.parameters())


@variants
def test_far_is_more_adversarial_than_natural(name: str, options: dict) -> None:
    train, labels = embeddings()
    detector = fitted(name, options, train, labels)
    assert detector.score(train - 100).min() > detector.score(train).max()  # of logits: no class stands out


@variants
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_following_the_gradient_lowers_the_score(name: str, options: dict, dtype: torch.dtype) -> None:
    train, labels = embeddings()
    detector = fitted(name, options, train, labels)
    start = (train[:7] * torch.linspace(-1, 0.5, 6)).to(dtype)
    h = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(detector.score(h).sum(), h)
    assert gradient.dtype == dtype
    step = 1e-3 * gradient.double() / gradient.double().norm(dim=1, keepdim=True)
    assert (detector.score(start - step) < detector.score(start)).all()


@variants
def test_gradients_are_those_of_finite_differences(name: str, options: dict) -> None:
    train, labels = embeddings()
    detector = fitted(name, options, train, labels)
    generator = torch.Generator().manual_seed(1)
    h = (train[:5].double() + torch.randn(5, 6, generator=generator, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(detector.score, (h,))


@variants
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), per_class=st.integers(2, 7), repeat=st.booleans(), scale=st.sampled_from([1e-6, 1e6]))
def test_hard_embeddings(name: str, options: dict, seed: int, per_class: int, repeat: bool, scale: float) -> None:
    """Dead and constant units, repeated images, fewer samples than dimensions and components, any scale."""
    train, labels = embeddings(3 * per_class, 8, seed)
    train[:, :3] = 0
    train[:, 3] = 2.5
    if repeat:
        train, labels = train.repeat(3, 1), labels.repeat(3)
    train = train * scale
    detector = fitted(name, options, train, labels)
    for rows in (train, torch.zeros(2, 8), 1e3 * train, torch.full((1, 8), scale), train[:0]):
        h = rows.clone().requires_grad_()
        scores = detector.score(h)
        assert scores.shape == rows.shape[:1]
        assert scores.isfinite().all()
        (gradient,) = torch.autograd.grad(scores.sum(), h)
        assert gradient.isfinite().all()


@variants
def test_order_and_names_of_the_classes_do_not_matter(name: str, options: dict) -> None:
    train, labels = embeddings()
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    scores = fitted(name, options, train, labels).score(train - 1)
    other = fitted(name, options, train[order], (9 - 4 * labels[order]).to(torch.int32)).score(train - 1)
    torch.testing.assert_close(scores, other)


@variants
def test_scores_do_not_depend_on_the_batch(name: str, options: dict) -> None:
    train, labels = embeddings()
    detector = fitted(name, options, train, labels)
    many = torch.cat([train - 1, train.repeat(BATCH // len(train) + 1, 1)])
    alone = torch.cat([detector.score(row[None]) for row in many[:5]])
    torch.testing.assert_close(detector.score(many)[:5], alone)


@variants
def test_a_saved_detector_scores_the_same(name: str, options: dict, tmp_path: Path) -> None:
    train, labels = embeddings()
    detector = fitted(name, options, train, labels)
    save_detector(detector, Calibration(0.1, 3.0, 1.0), "abc", tmp_path)
    loaded, calibration = load_detector(tmp_path, weights="abc")
    assert type(loaded) is type(detector)
    assert (loaded.config, calibration) == (detector.config, (0.1, 3.0, 1.0))
    assert torch.equal(loaded.score(train - 1), detector.score(train - 1))
    assert json.loads((tmp_path / "detector.json").read_text())["name"] == name


@variants
def test_what_cannot_be_scored_or_fitted(name: str, options: dict) -> None:
    detector = build_detector(name, **options)
    train, labels = embeddings()
    with pytest.raises(TrlError, match="not fitted"):
        detector.score(train)
    detector.fit(train, labels)
    with pytest.raises(TrlError, match="5 dimensions, but the detector was fitted to 6"):
        detector.score(train[:, :5])
    with pytest.raises(TrlError, match="NaN"):
        detector.score(train * torch.nan)
    for broken, of in ((train * torch.inf, labels), (train, labels[:-1]), (train[:0], labels[:0])):
        with pytest.raises(TrlError) as caught:
            detector.fit(broken, of)
        assert "\n" not in str(caught.value)


@variants
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_embeddings_that_are_all_the_same(name: str, options: dict, value: float) -> None:
    """A density cannot be fitted; the others have a finite score."""
    train, labels = torch.full((30, 6), value), torch.arange(30) % 3
    if name in ("gaussian", "gmm", "mahalanobis"):
        with pytest.raises(TrlError, match="embeddings of a class are all equal"):
            fitted(name, options, train, labels)
        return
    detector = fitted(name, options, train, labels)
    assert detector.score(train).isfinite().all()
    assert (detector.score(train - 1) >= detector.score(train)).all()


@variants
def test_a_class_of_one_sample(name: str, options: dict) -> None:
    train, labels = embeddings(31)
    labels[-1] = 7
    if name == "gmm" or (name == "gaussian" and options["covariance"] != "tied"):
        with pytest.raises(TrlError, match="class 7 has one sample"):
            fitted(name, options, train, labels)
    else:
        assert fitted(name, options, train, labels).score(train).isfinite().all()


@variants
def test_unknown_options_are_refused(name: str, options: dict) -> None:
    allowed = ", ".join(DETECTORS.options(name).model_fields) or "none"
    with pytest.raises(TrlError, match=f"detector {name}: colour: unknown key; allowed: {allowed}"):
        build_detector(name, **options, colour="red")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gmm", {"components": 0}),
        ("gmm", {"covariance": "tied"}),
        ("knn", {"neighbours": 0}),
        ("lid", {"neighbours": 1}),
        ("energy", {"temperature": 0}),
        ("mahalanobis", {"shrinkage": -0.1}),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict) -> None:
    with pytest.raises(TrlError, match=f"detector {name}: {next(iter(options))}: "):
        build_detector(name, **options)


def test_what_they_read() -> None:
    reads = {name: build_detector(name).reads for name in DETECTORS.names()}
    assert reads.pop("mahalanobis") == "layers"
    assert {name for name, what in reads.items() if what == "logits"} == set(FROM_LOGITS)
    assert set(reads.values()) == {"logits", "features"}


@pytest.mark.parametrize("name", ["gaussian", "gmm", "knn", "lid"])
def test_the_layer_is_stored_with_the_detector(name: str, tmp_path: Path) -> None:
    detector = build_detector(name, layer="body.3").fit(*embeddings())
    save_detector(detector, Calibration(0.1, 3.0, 1.0), "abc", tmp_path)
    loaded, _ = load_detector(tmp_path)
    assert detector.reads == loaded.reads == Layer("body.3")
    assert loaded.config == detector.config
    assert torch.equal(loaded.score(embeddings()[0]), detector.score(embeddings()[0]))
    with pytest.raises(TrlError, match=f"detector {name}: layer: .* a valid string, not 3"):
        build_detector(name, layer=3)


@pytest.mark.parametrize("name", ["energy", "mahalanobis", "max_logit"])
def test_what_reads_something_else_has_no_layer(name: str) -> None:
    with pytest.raises(TrlError, match=f"detector {name}: layer: unknown key"):
        build_detector(name, layer="body.3")


@pytest.mark.parametrize("name", ["gaussian", "gmm", "knn", "lid"])
def test_detectors_stored_before_there_were_layers(name: str, tmp_path: Path) -> None:
    save_detector(build_detector(name).fit(*embeddings()), Calibration(0.1, 3.0, 1.0), "abc", tmp_path)
    config = json.loads((tmp_path / "detector.json").read_text())
    assert config["options"].pop("layer") is None
    (tmp_path / "detector.json").write_text(json.dumps(config))
    assert load_detector(tmp_path)[0].reads == "features"
