"""The benchmark of the attacks runs without its peers, and says so."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import attacks
from tests.helpers.absent import hide
from trl.attacks.ensemble import Ensemble
from trl.threat import Threat

BUDGETS = {"apgd_ce": {"steps": 5}, "apgd_t": {"steps": 5}, "fab_t": {"steps": 5}, "square": {"queries": 50}}
ABSENT = ("torchattacks", "foolbox", "art", "pyautoattack")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No peers, no raw data, and little to measure."""

    def brief_attack(name: str, threat: Threat) -> Ensemble:
        parts = built(name, threat).parts
        return Ensemble({part: partial(attack, **BUDGETS[part]) for part, attack in parts.items()})

    built = attacks.build_attack
    monkeypatch.setattr(attacks, "build_attack", brief_attack)
    tiny = replace(attacks.QUICK, networks=(("strided_cnn", (1, 8, 8), 4),), steps=2, turns=1, epochs=1)
    hide(monkeypatch, *ABSENT)
    monkeypatch.setattr(attacks, "QUICK", tiny)
    monkeypatch.delenv("TRL_RAW_DATA", raising=False)


@pytest.mark.usefixtures("alone")
def test_runs_without_peers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "attacks.json"
    attacks.main(["--quick", "--images", "8", "--device", "cpu", "--out", str(out)])
    found = json.loads(out.read_text())
    (speed,) = found["gradients"]
    assert speed["gradients per second"]["trl"] > 0
    assert speed["gradients per second"]["torchattacks"] is None
    assert speed["ratios"] == {}
    robust = found["autoattack"]["trl"]["robust"]
    assert list(robust) == list(found["autoattack"]["trl"]["seconds"]) == ["apgd_ce", "apgd_t", "fab_t", "square"]
    assert 0 <= robust["square"] <= robust["apgd_ce"] <= found["autoattack"]["trl"]["clean"] <= 1
    assert found["autoattack"]["pyautoattack"] is None
    assert found["machine"]["cpu"]
    assert found["versions"]["torch"]
    assert out.with_suffix(".png").stat().st_size > 1000
    printed = capsys.readouterr()
    assert printed.out.count("not installed") == 3 + 2 * 5
    assert "turn 1 of 1" in printed.err


def test_ratios_are_of_the_same_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slows down half-way changes the rates, not the ratio."""
    calls: list[str] = []

    def contestant(name: str) -> attacks.Contestant:
        return lambda model, shape, steps: lambda x, y: calls.append(name)

    def timed(run: Any, device: str) -> float:
        run()
        return {"trl": 1.0, "torchattacks": 3.0}[calls[-1]] * (10 if len(calls) > 4 else 1)

    monkeypatch.setattr(attacks, "CONTESTANTS", {name: contestant(name) for name in ("trl", "torchattacks")})
    monkeypatch.setattr(attacks, "timed", timed)
    found = attacks.gradient_speed(("mlp", (1, 4, 4), 5), replace(attacks.QUICK, steps=2, turns=3), "cpu", 0)
    assert found["ratios"] == {"trl / torchattacks": 3.0}
    assert found["gradients per second"]["trl"] == pytest.approx(1.0)
    assert calls == ["trl", "torchattacks"] * 4
