"""The stages proxy and mix on a small network, training on the samples, and which stages DVC has."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tasks.mix import mix
from tasks.paths import RecipePaths
from tasks.proxy import sample_proxy
from tasks.stage import Stage
from tasks.train import train_on
from tests.helpers import ROOT
from trl.common.errors import TrlError
from trl.config import load_params
from trl.data import ImageSet, load_dataset, load_samples, save_splits, split
from trl.proxies import PROXIES, build_proxy
from trl.results import ArcResult, MixResult, ProxyResult

PATHS = RecipePaths("digits_proxies")


def write_params(**lists: object) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params |= {"recipe": "digits_proxies", "methods": ["at"], **lists}
    recipe = params["recipes"]["digits_proxies"]
    recipe["model"] |= {"width": 16, "depth": 1}
    recipe["train"] |= {"epochs": 2, "attack": {"name": "pgd", "steps": 2}}
    recipe["proxies"]["kde"] |= {"count": 300, "select": 0.5}
    recipe["proxies"]["gaussian"] |= {"count": 60}
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.chdir(tmp_path)
    save_splits(split(load_dataset("digits"), 150, 0, 200), PATHS.data)
    write_params(proxies=["kde", "gaussian"], on_proxies=["at_kde", "at_gaussian"])
    return Stage(load_params(), "digits_proxies", "at_kde", 0)


def test_samples_and_what_is_said_of_them(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("kde", "gaussian"):
        sample_proxy(stage, name)
    samples, result = load_samples(PATHS.proxy("kde")), ProxyResult.read(PATHS.proxy_metrics("kde"))
    train = split(load_dataset("digits"), 150, 0, 200)
    files = sorted(path.name for path in PATHS.proxy("kde").iterdir())
    assert files == ["contact_sheet.png", "images.npy", "labels.npy"]
    assert (result.drawn, result.kept, len(samples), result.fitted_to) == (300, 150, 150, 200)
    assert (result.data, result.proxy, result.options) == (train.sha256, "kde", {"neighbours": 5})
    assert [result.labels[str(k)] for k in range(10)] == samples.labels.bincount(minlength=10).tolist()
    drawn = {image.numpy().tobytes() for part in build_proxy("kde", train.train, 10, 0)(300) for image in part.images}
    assert {image.numpy().tobytes() for image in samples.images} <= drawn
    assert result.nearest.median < result.held_out.low  # it draws between images
    assert result.copies > 0.5
    assert "the proxy memorises" in result.warnings[0]
    other = ProxyResult.read(PATHS.proxy_metrics("gaussian"))
    assert (other.kept, other.warnings) == (60, [])
    arc = ArcResult.read(PATHS.proxy_metrics("gaussian"))
    assert (arc.norm, arc.epsilons[0], arc.epsilons[-1], len(arc.accuracy)) == ("linf", 0, 0.4, 8)
    said = capsys.readouterr().out
    assert "warning: kde: " in said
    assert "gaussian: 60 of 60 images, ARC 0." in said


@pytest.mark.parametrize("name", [name for name in PROXIES.names() if name != "file"])
def test_no_proxy_sees_a_validation_or_test_image(name: str) -> None:
    """What it draws is the same, whatever the other images are."""
    data = split(load_dataset("digits"), 150, 0, 200)
    train = ImageSet(data.train.images.clone(), data.train.labels.clone())
    first = next(build_proxy(name, train, 10, 0)(50)).images
    for part in (data.validation, data.test):
        part.images.random_(0, 256)
        assert torch.equal(next(build_proxy(name, data.train, 10, 0)(50)).images, first)


def test_the_stage_fits_to_training_images_alone(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ImageSet] = []
    import trl.proxies.make as made

    def build(name: str, train: ImageSet, *rest: Any, **options: Any) -> Any:
        seen.append(train)
        return build_proxy(name, train, *rest, **options)

    monkeypatch.setattr(made, "build_proxy", build)
    sample_proxy(stage, "gaussian")
    data = split(load_dataset("digits"), 150, 0, 200)
    assert torch.equal(seen[0].images, data.train.images)


def test_a_method_trains_on_its_samples_and_only_these_mark_it(stage: Stage) -> None:
    for name in ("kde", "gaussian"):
        sample_proxy(stage, name)
    mix(stage)
    before = MixResult.read(PATHS.mix("at_kde"))
    assert before.samples == ProxyResult.read(PATHS.proxy_metrics("kde")).samples
    train_on(stage, "cpu")
    header = (stage.model_paths.metrics / "training.csv").read_text().splitlines()[0]
    assert {"real_loss", "proxy_loss", "proxy_accuracy"} <= set(header.split(","))
    images = PATHS.proxy("kde") / "images.npy"
    content = bytearray(images.read_bytes())
    content[-1] ^= 1
    images.write_bytes(content)
    with pytest.raises(TrlError, match=r"kde: these are not the samples that mix.json names; run the stages proxy and"):
        train_on(stage, "cpu")


def test_what_is_missing_or_unknown_is_one_line(stage: Stage) -> None:
    with pytest.raises(TrlError, match=r"mix.json: No such file or directory; run the mix stage"):
        train_on(stage, "cpu")
    with pytest.raises(TrlError, match=r"proxies/kde/proxy.json: No such file or directory; run the proxy stage"):
        mix(stage)
    with pytest.raises(TrlError, match=r"unknown proxy 'no'; recipes.digits_proxies.proxies has noise, kde, gaussian"):
        sample_proxy(stage, "no")
    with pytest.raises(TrlError, match=r"recipes.digits_proxies.methods.at has no `proxy`"):
        mix(Stage(stage.params, "digits_proxies", "at"))


@pytest.mark.parametrize("methods", [[], ["at_kde", "tla_noise"]])
def test_the_graph_has_the_stages_for_what_is_on_the_lists(tmp_path: Path, methods: list[str]) -> None:
    (tmp_path / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    proxies = [method.split("_")[1] for method in methods]
    params |= {"recipe": "digits_proxies", "methods": ["at"], "proxies": proxies, "on_proxies": methods}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    for command in (("init", "--no-scm", "-q"), ("dag", "--dot")):
        done = subprocess.run([sys.executable, "-m", "dvc", *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    found = (line.strip(";").replace('"', "").split(" -> ") for line in done.stdout.splitlines())
    edges = {(edge[0], edge[1]) for edge in found if len(edge) == 2}
    kinds = {name.split("@")[0] for edge in edges for name in edge}
    assert kinds >= {"prepare", "train", "attack", "detect", "report"}
    assert (
        ("mix" in kinds) == ("proxy" in kinds) == any(kind.endswith("_on_proxies") for kind in kinds) == bool(methods)
    )
    for method, proxy in zip(methods, proxies, strict=True):
        model = f"digits_proxies-{method}"
        assert (f"proxy@digits_proxies-{proxy}", f"mix@{model}") in edges
        assert (f"mix@{model}", f"train_on_proxies@{model}-0") in edges
        assert (f"train_on_proxies@{model}-0", f"attack_on_proxies@{model}-0") in edges
        assert (f"attack_on_proxies@{model}-0", f"detect_on_proxies@{model}-0") in edges
        assert (f"detect_on_proxies@{model}-0", "report@digits_proxies") in edges
    assert ("train@digits_proxies-at-0", "attack@digits_proxies-at-0") in edges
    assert {first for first, second in edges if second.startswith("train@")} == {"prepare@digits_proxies"}
