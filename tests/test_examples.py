"""Each program in examples/ runs, and shows what it is there to show."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


def percent(pattern: str, text: str) -> float:
    found = re.search(pattern + r"\s+([\d.]+)%", text, re.MULTILINE)
    assert found, text
    return float(found[1])


def test_attack_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    shown = run("attack_a_model", capsys)
    assert percent("^clean", shown) > 90
    assert percent("^worst", shown) <= min(percent(f"^{name}", shown) for name in ("fgsm", "pgd", "apgd")) < 50
    assert "warning" not in shown


def test_train_tla(capsys: pytest.CaptureFixture[str]) -> None:
    shown = run("train_tla", capsys)
    assert percent("^clean", shown) > 80
    assert percent("under PGD", shown) > 25  # of the same network trained on natural images: less than 1


def test_detect_attacks(capsys: pytest.CaptureFixture[str]) -> None:
    shown = run("detect_attacks", capsys)
    assert percent("^natural.* missed", shown) < 10
    assert percent("^knows the detector, too.* missed", shown) > percent("^knows the classifier.* missed", shown) + 10


def test_the_list_of_examples_is_complete() -> None:
    listed = re.findall(r"`python examples/(\w+)\.py`", (EXAMPLES / "README.md").read_text())
    assert sorted(listed) == sorted(path.stem for path in EXAMPLES.glob("*.py"))
