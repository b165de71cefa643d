import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trl.evaluation.intervals import accuracy


@given(n=st.integers(1, 500), data=st.data())
def test_wilson_formula(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    found = accuracy(torch.arange(n) < k)
    z, p = 1.959963984540054, k / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert found["n"] == n
    assert found["accuracy"] == p
    assert found["low"] == pytest.approx((centre - half) / (1 + z * z / n), abs=1e-9)
    assert found["high"] == pytest.approx((centre + half) / (1 + z * z / n), abs=1e-9)
