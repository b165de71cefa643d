import copy

import pytest
import torch

from trl.batch_norm import apart, has_batch_norm
from trl.models import build_model


@pytest.mark.parametrize("name", ["mnist_cnn", "resnet18"])
def test_groups_in_one_pass_are_normalised_as_one_after_the_other(name: str) -> None:
    torch.manual_seed(0)
    together = build_model(name, 3, (1, 8, 8)).double()
    one_by_one = copy.deepcopy(together)
    groups = [torch.rand(n, 1, 8, 8).double() + shift for n, shift in ((4, 0.0), (6, 1.0), (3, 0.5))]
    with apart([4, 6, 3]):
        whole = together(torch.cat(groups))
    parts = torch.cat([one_by_one(group) for group in groups])
    torch.testing.assert_close(whole, parts)
    assert not torch.allclose(copy.deepcopy(one_by_one)(torch.cat(groups)), parts)  # mixed, they would differ
    for logits in (whole, parts):
        logits.square().sum().backward()  # type: ignore[no-untyped-call]
    for (key, a), b in zip(together.named_parameters(), one_by_one.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=key)
    for (key, a), b in zip(together.named_buffers(), one_by_one.buffers(), strict=True):
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(a, b, msg=key)
    assert has_batch_norm(together)


def test_running_statistics_know_no_groups() -> None:
    torch.manual_seed(0)
    net, x = build_model("mnist_cnn", 3, (1, 8, 8)).eval(), torch.rand(5, 1, 8, 8)
    expected = net(x)
    with apart([2, 3]):
        torch.testing.assert_close(net(x), expected)
