"""In which precision attacks search, and that decisions are not made in it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trl.attacks import Attack, build_attack
from trl.attacks.ensemble import Ensemble
from trl.common.errors import TrlError
from trl.evaluation import evaluate
from trl.models import build_model
from trl.nn.precision import searches_in_half
from trl.threat import Linf

THREAT = Linf(0.1)


class Watched(nn.Module):
    """Remembers the precision in which it was asked."""

    def __init__(self, fails_in_half: Callable[[int], bool] = lambda call: False) -> None:
        super().__init__()
        self.layer, self.seen, self.fails_in_half = nn.Linear(16, 3), list[torch.dtype](), fails_in_half

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.flatten(1))
        self.seen.append(logits.dtype)
        if logits.dtype == torch.bfloat16 and self.fails_in_half(self.seen.count(torch.bfloat16)):
            raise RuntimeError("index_put in two types")
        return logits


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.rand(12, 1, 4, 4), torch.zeros(12, dtype=torch.long)


def watched(fails_in_half: Callable[[int], bool] = lambda call: False) -> Watched:
    torch.manual_seed(0)
    model = Watched(fails_in_half).eval()
    nn.init.constant_(model.layer.bias, 0)
    model.layer.bias.data[0] = 2  # class 0 it is
    return model


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trl.evaluation.run.has_fast_bf16", lambda device: True)


def used(model: Watched, data: tuple[Tensor, Tensor], attack: Attack, precision: str, **options: int) -> str:
    found = evaluate(model, *data, {"it": attack}, THREAT, checks=False, precision=precision, **options)
    return found.costs["it"].precision


def test_half_precision_is_asked_for(data: tuple[Tensor, Tensor]) -> None:
    model = watched()
    assert used(model, data, build_attack("pgd", THREAT, steps=2), "fp32") == "fp32"
    assert set(model.seen) == {torch.float32}
    assert used(model, data, build_attack("pgd", THREAT, steps=2), "bf16") == "bf16"
    assert model.seen[-1] == torch.float32  # the decision
    assert model.seen.count(torch.bfloat16) == 2


def test_nothing_else_imposes_it(data: tuple[Tensor, Tensor]) -> None:
    """Not the caller's autocast, either."""
    model = watched()
    with torch.autocast("cpu", torch.bfloat16):
        assert used(model, data, build_attack("pgd", THREAT, steps=2), "fp32") == "fp32"
    assert set(model.seen) == {torch.float32}


def test_attacks_that_did_not_declare_it_search_in_fp32(data: tuple[Tensor, Tensor]) -> None:
    def own(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        model(x)
        return x

    model = watched()
    for attack in (own, build_attack("deepfool", THREAT), build_attack("square", THREAT, queries=3)):
        assert used(model, data, attack, "bf16") == "fp32"
    assert set(model.seen) == {torch.float32}


def test_where_it_was_not_faster_it_is_not_used(data: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trl.evaluation.run.has_fast_bf16", lambda device: False)
    model = watched()
    assert used(model, data, build_attack("pgd", THREAT, steps=2), "bf16") == "fp32"
    assert set(model.seen) == {torch.float32}


def test_parts_of_an_ensemble_declare_it_one_by_one(data: tuple[Tensor, Tensor]) -> None:
    parts = {"pgd": build_attack("pgd", THREAT, steps=1), "fab": build_attack("fab", THREAT, steps=1)}
    found = evaluate(watched(), *data, {"both": Ensemble(parts)}, THREAT, checks=False, precision="bf16")
    assert {name: cost.precision for name, cost in found.costs.items()} == {"both/pgd": "bf16", "both/fab": "fp32"}
    assert found.summary()["cost"]["both/pgd"]["precision"] == "bf16"


def test_a_model_that_fails_in_half_precision_is_attacked_in_fp32(
    data: tuple[Tensor, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    attack = build_attack("pgd", THREAT, steps=2)
    expected = evaluate(watched(), *data, {"it": attack}, THREAT, checks=False)
    model = watched(lambda call: True)
    found = evaluate(model, *data, {"it": attack}, THREAT, batch_size=12, checks=False, precision="bf16")
    assert found.costs["it"].precision == "fp32"
    assert torch.equal(found.adversarials, expected.adversarials)
    assert "cannot search in bf16 (RuntimeError: index_put in two types)" in capsys.readouterr().out
    assert model.seen.count(torch.bfloat16) == 1  # tried once


def test_later_batches_that_fail_are_said(data: tuple[Tensor, Tensor]) -> None:
    attack = build_attack("pgd", THREAT, steps=2)
    assert used(watched(lambda call: call > 2), data, attack, "bf16", batch_size=4) == "bf16 and fp32"


def test_an_error_of_the_attack_itself_is_not_hidden(data: tuple[Tensor, Tensor]) -> None:
    @searches_in_half
    def broken(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return x @ torch.ones(5, 3)

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        evaluate(watched(), *data, {"it": broken}, THREAT, checks=False, precision="bf16")


def test_what_half_precision_contributed_nothing_to_is_not_said(data: tuple[Tensor, Tensor]) -> None:
    @searches_in_half
    def breaks_in_half(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return x * torch.nan if torch.is_autocast_enabled("cpu") else x

    assert used(watched(), data, breaks_in_half, "bf16") == "fp32"


def test_an_unknown_precision_is_refused(data: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(TrlError, match="precision is 'BF16': give fp32 or bf16"):
        used(watched(), data, build_attack("pgd", THREAT), "BF16")


def test_the_precision_belongs_to_the_state(data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, attacks = build_model("mlp", 3, (1, 4, 4)), {"pgd": build_attack("pgd", THREAT, steps=2)}
    for precision in ("fp32", "bf16", "bf16"):
        evaluate(model, *data, attacks, THREAT, checks=False, precision=precision, state=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
