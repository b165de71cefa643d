"""The detectors that read logits: energy and max_logit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from trl.detectors import build_detector

rows = arrays("float64", (4, 3), elements=st.floats(-1e4, 1e4)).map(torch.from_numpy)


def score(name: str, logits: Tensor, **options: float) -> Tensor:
    return build_detector(name, **options).fit(torch.zeros(1, logits.shape[1]), torch.zeros(1)).score(logits)


@pytest.mark.parametrize("temperature", [0.5, 1, 10])
def test_energy_by_hand(temperature: float) -> None:
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    expected = [-temperature * np.log(sum(np.exp(z / temperature) for z in row)) for row in logits.tolist()]
    np.testing.assert_allclose(score("energy", logits, temperature=temperature).numpy(), expected, rtol=1e-12)
    assert torch.equal(score("energy", logits), -logits.double().logsumexp(1))


def test_max_logit_by_hand() -> None:
    assert score("max_logit", torch.tensor([[1.0, 3.0, 2.0], [-1.0, -5.0, -2.0]])).tolist() == [-3, 1]


@settings(max_examples=20, deadline=None)
@given(logits=rows, temperature=st.sampled_from([1e-3, 1.0, 1e3]))
def test_energy_lies_within_a_constant_of_max_logit(logits: Tensor, temperature: float) -> None:
    gap = score("max_logit", logits) - score("energy", logits, temperature=temperature)
    assert (gap >= -1e-9).all()
    assert (gap <= temperature * np.log(3) + 1e-9).all()
