import copy

import pytest
import torch
from torch import nn

from trl.models.stem import Stem

OPTIONS = [{"kernel_size": 3, "padding": 1}, {"kernel_size": 4, "stride": 2, "padding": 1}, {"kernel_size": 2}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_the_convolution(channels: int, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    stem = Stem(channels, 5, **options).double()
    plain = nn.Conv2d(channels, 5, **options).double()
    plain.load_state_dict(stem.state_dict())
    xs = [torch.rand(4, channels, 9, 7, dtype=torch.float64).requires_grad_()]
    xs.append(xs[0].detach().clone().requires_grad_())
    results = [net(x) for net, x in zip((stem, plain), xs, strict=True)]
    torch.testing.assert_close(*results)
    weights = torch.rand_like(results[0])
    for result in results:
        (result * weights).sum().backward()
    torch.testing.assert_close(xs[0].grad, xs[1].grad)
    for a, b in zip(stem.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_under_functional_transforms_and_half_precision() -> None:
    torch.manual_seed(0)
    stem, x = Stem(1, 4, 3, padding=1), torch.rand(5, 1, 6, 6)
    expected = stem(x)
    torch.testing.assert_close(torch.vmap(lambda a: stem(a[None])[0])(x), expected)
    tangent = torch.func.jvp(stem, (x,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(tangent, stem(x + 1) - expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert stem(x).dtype == torch.bfloat16
    half = copy.deepcopy(stem).to(torch.bfloat16)(x.to(torch.bfloat16))
    torch.testing.assert_close(half.float(), expected, rtol=0.02, atol=0.02)
