"""Modes: by the model's own eval() and train(), and as before afterwards."""

import pytest
import torch
from torch import nn

from tests.helpers.module_kinds import Deploying, exported, plain
from trl.nn.modes import evaluating, kept_in_training


def flags(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("training", [(), (0,), (1,), (2, 3), (0, 1, 2, 3, 4, 5)])
def test_every_mode_is_restored(training: tuple[int, ...]) -> None:
    model = plain()
    for index, module in enumerate(model.modules()):
        module.training = index in training
    before = flags(model)
    with evaluating(model):
        assert not any(flags(model))
        model.train()  # as a third-party attack may leave it
    assert flags(model) == before


def test_the_models_own_methods_are_called() -> None:
    model = Deploying().train()
    with evaluating(model):
        assert model.ready
        with evaluating(model):
            assert model.ready
        assert model.ready
    assert model.training
    assert not model.ready


def test_a_model_in_eval_mode_is_not_touched() -> None:
    class Untouchable(nn.Linear):
        def train(self, mode: bool = True) -> "Untouchable":
            raise AssertionError

    model = Untouchable(2, 2)
    model.training = False
    with evaluating(model):
        pass


def test_an_exported_module_has_no_modes() -> None:
    model = exported(None)
    with evaluating(model):
        assert model(torch.rand(3, 1, 8, 8)).shape == (3, 3)


def test_what_was_switched_on_in_an_evaluating_model_is_seen() -> None:
    model = nn.Sequential(plain(), nn.Dropout()).eval()
    assert kept_in_training(model) == []
    model.train()
    assert kept_in_training(model) == []
    model[0].eval()
    model[0][1].train()
    assert kept_in_training(model) == ["0.1"]
    model.eval()
    model[1].train()
    assert kept_in_training(model) == ["1"]


def test_a_new_layer_without_modes_is_not() -> None:
    model = plain()
    model[4] = nn.Linear(256, 5)
    assert kept_in_training(model) == []


class Refusing(nn.Module):
    """Its train() leaves it, and its part, in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout()

    def train(self, mode: bool = True) -> "Refusing":
        return super().train(False)


def test_modes_are_restored_that_train_does_not_set() -> None:
    model = Refusing()
    assert flags(model) == [True, True]  # as it was made
    with evaluating(model):
        assert not any(flags(model))
    assert flags(model) == [True, True]


class Sampling(nn.Module):
    """Monte Carlo dropout: on purpose, its eval() leaves dropout on."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout()

    def train(self, mode: bool = True) -> "Sampling":
        super().train(mode)
        self.drop.train()
        return self


def test_what_the_models_own_eval_leaves_on_is_no_sign() -> None:
    model = Sampling().eval()
    assert flags(model) == [False, True]
    assert kept_in_training(model) == []
    assert flags(model) == [False, True]
