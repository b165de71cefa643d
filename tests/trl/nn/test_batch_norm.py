import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from trl.common.errors import TrlError
from trl.models import build_model
from trl.nn.batch_norm import SharedBatchNorm, share_batch_norm


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A group of one process; two are tested by test_sharing.py."""
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(4), (6, 4)),
        (nn.BatchNorm1d(4, affine=False), (6, 4, 5)),
        (nn.BatchNorm2d(4, eps=0.1, momentum=0.3), (6, 4, 3, 2)),
        (nn.BatchNorm2d(4, momentum=None), (6, 4, 3, 2)),
        (nn.BatchNorm2d(4, track_running_stats=False), (6, 4, 3, 2)),
    ],
)
@pytest.mark.usefixtures("group")
def test_one_process_normalises_as_pytorch_does(norm: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(copy.deepcopy(norm)).double()
    shared = copy.deepcopy(plain)
    share_batch_norm(shared)
    assert isinstance(shared[0], SharedBatchNorm)
    for _ in range(2):
        xs = [torch.rand(shape, dtype=torch.float64).requires_grad_()]
        xs.append(xs[0].detach().clone().requires_grad_())
        found = [net(x) for net, x in zip((plain, shared), xs, strict=True)]
        torch.testing.assert_close(found[1], found[0])
        weights = torch.rand(shape, dtype=torch.float64)
        for result in found:
            (result * weights).sum().backward()
        torch.testing.assert_close(xs[1].grad, xs[0].grad)
    torch.testing.assert_close(dict(shared.state_dict()), dict(plain.state_dict()))
    for a, b in zip(shared.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    x = torch.rand(shape, dtype=torch.float64)
    torch.testing.assert_close(shared.eval()(x), plain.eval()(x))


def test_one_layer_in_two_places_and_its_hooks_are_shared() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm2d(3)))
    net.append(net[0])
    net[0].register_forward_hook(lambda module, inputs, output: output + 1)
    share_batch_norm(net)
    share_batch_norm(net)  # once more, as a run that goes on may
    assert net[0] is net[2]
    assert all(type(module) is SharedBatchNorm for module in net.modules() if not isinstance(module, nn.Sequential))
    torch.testing.assert_close(net[0].eval()(torch.zeros(2, 3)), torch.ones(2, 3))


def test_a_batch_norm_of_ones_own_is_refused() -> None:
    class Own(nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    with pytest.raises(TrlError, match=r"^1 is a Own, whose statistics several processes cannot share"):
        share_batch_norm(nn.Sequential(nn.ReLU(), Own(3)))


def test_sharing_keeps_the_parameters_and_their_names() -> None:
    net = build_model("resnet18", 3, (3, 8, 8))
    before = {name: id(parameter) for name, parameter in net.named_parameters()}
    names = list(net.state_dict())
    share_batch_norm(net)
    assert {name: id(parameter) for name, parameter in net.named_parameters()} == before
    assert list(net.state_dict()) == names
    assert not any(type(module) is nn.BatchNorm2d for module in net.modules())
