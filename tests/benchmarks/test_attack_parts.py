"""The benchmark of AutoAttack's parts: every part in every norm, also without pyautoattack."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from benchmarks import attack_parts
from tests.helpers.absent import hide
from trl.attacks.ensemble import Ensemble
from trl.threat import Threat

FEW = {part: {"queries": 20} if part == "square" else {"steps": 2} for part in attack_parts.PARTS}


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """No raw data, and little to measure."""

    def brief_attack(name: str, threat: Threat, **options: Any) -> Ensemble:
        parts = built(name, threat, **options).parts
        return Ensemble({part: partial(attack, **FEW[part]) for part, attack in parts.items()})

    built = attack_parts.build_attack
    monkeypatch.setattr(attack_parts, "build_attack", brief_attack)
    monkeypatch.setattr(attack_parts, "QUICK", replace(attack_parts.QUICK, images=8, seeds=2, epochs=2))
    monkeypatch.delenv("TRL_RAW_DATA", raising=False)


@pytest.mark.usefixtures("brief")
def test_every_part_in_every_norm_without_its_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide(monkeypatch, "pyautoattack")
    out = tmp_path / "parts.json"
    attack_parts.main(["--quick", "--device", "cpu", "--out", str(out)])
    rows = json.loads(out.read_text())["parts"]
    assert [(row["norm"], row["part"]) for row in rows] == [(n, p) for n in ("linf", "l2", "l1") for p in FEW]
    for row in rows:
        assert len(row["trl"]["left"]) == 2
        assert all(0 <= left <= row["images"] <= 8 for left in row["trl"]["left"])
        assert row["trl"]["seconds"] > 0
        assert row["pyautoattack"] is None
    assert capsys.readouterr().out.count("not installed") == len(rows)


@pytest.mark.usefixtures("brief")
def test_the_largest_deficit_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A peer that fools all images, at once in ℓ2 alone."""

    def winner(model: nn.Module, norm: str, epsilon: float, part: str, seed: int) -> attack_parts.Run:
        def run(x: Tensor, y: Tensor) -> Tensor:
            return other(x, y) if norm == "l2" else x

        other = attack_parts.ours(model, norm, 100.0, "apgd_ce", seed)
        return run

    monkeypatch.setitem(attack_parts.CONTESTANTS, "pyautoattack", winner)
    attack_parts.main(["--quick", "--device", "cpu", "--parts", "square", "--norms", "linf", "l2"])
    printed = capsys.readouterr().out
    assert printed.count("| digits | ") == 2
    assert re.search(r"Largest deficit: \+[1-8].0 images of \d, square in l2 on digits", printed)
