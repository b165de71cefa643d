import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tests.helpers.tiny_models import Halved
from trl.nn.wrappers import eager, unwrapped


def test_wrappers_are_seen_through_however_nested() -> None:
    net = nn.Linear(2, 2)
    for wrapped in (net, torch.compile(net), nn.DataParallel(net), torch.compile(nn.DataParallel(torch.compile(net)))):
        assert unwrapped(wrapped) is net
    averaged = AveragedModel(net)
    assert unwrapped(torch.compile(averaged)) is averaged.module


def test_what_computes_something_else_is_no_wrapper() -> None:
    halved = Halved(nn.Linear(2, 2))
    assert unwrapped(halved) is halved
    assert unwrapped(nn.DataParallel(halved)) is halved


@pytest.mark.parametrize("inside", [True, False])
def test_compiled_parts_show_new_hooks(inside: bool) -> None:
    body = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    if inside:
        model = nn.Sequential(torch.compile(body, backend="eager"), nn.Linear(2, 2))
    else:
        model = nn.Sequential(body, nn.Linear(2, 2))
        model.compile(backend="eager")
    x, seen = torch.rand(3, 2), []
    expected = model(x)
    body[0].register_forward_hook(lambda *_: seen.append(True))
    with eager(model):
        assert torch.equal(model(x), expected)
    assert seen == [True]
