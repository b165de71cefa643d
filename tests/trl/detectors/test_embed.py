import pytest
import torch
from torch import nn

from tests.helpers.tiny_models import Net, images
from trl.common.errors import TrlError
from trl.detectors.base import Layer
from trl.detectors.observe import Observed, embed


@pytest.mark.parametrize("batch_size", [1, 3, 60, 257])
def test_features_and_logits_in_eval_mode(batch_size: int) -> None:
    model, (x, _) = Net().train(), images()
    features, logits = embed(model, x, batch_size)
    assert model.training
    assert model.body[2].num_batches_tracked == 0
    assert features.shape == (60, 8)
    assert logits.shape == (60, 3)
    assert not features.requires_grad
    model.eval()
    torch.testing.assert_close(features, model.features(x / 255).detach())
    torch.testing.assert_close(logits, model(x / 255).detach())
    with torch.autocast("cpu"):
        again = embed(model, x / 255, batch_size)
    assert again[0].dtype == again[1].dtype == torch.float32
    torch.testing.assert_close(again, (features, logits))


def test_any_module() -> None:
    torch.manual_seed(0)
    model, (x, _) = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 3)).train(), images()
    features, logits = embed(nn.DataParallel(model), x, 17)
    torch.testing.assert_close(features, model[:3](x / 255).detach())
    torch.testing.assert_close(logits, model(x / 255).detach())
    layer, again = embed(model, x, 17, Layer("1"))
    torch.testing.assert_close((layer, again), (model[:2](x / 255).detach(), logits))
    assert model.training


def test_what_is_read_is_computed_once() -> None:
    model, (x, y) = Net().eval(), images()
    passed: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
    seen = Observed(model, x, y, 50)
    assert passed == []
    part, other = seen.first(20), seen.become(x.flip(0))
    for images_read in (part, seen, seen.first(None), part):
        images_read.read()
    assert passed == [50, 10]
    for reads in ("logits", Layer("body.0"), "logits", Layer("body.0")):
        seen.read(reads)
    assert passed == [50, 10] * 3
    assert (len(seen), len(part), len(other), part.labels.tolist()) == (60, 20, 60, y[:20].tolist())
    expected = embed(model, x, 50)
    torch.testing.assert_close(seen.read(), expected, rtol=0, atol=0)
    torch.testing.assert_close(part.read(), (expected[0][:20], expected[1][:20]), rtol=0, atol=0)
    torch.testing.assert_close(other.read()[0], expected[0].flip(0))
    assert other.labels is y


def test_what_cannot_be_embedded() -> None:
    x, _ = images(4)
    with pytest.raises(TrlError, match="Sequential runs no linear layer"):
        embed(nn.Sequential(nn.Flatten()), x)
    with pytest.raises(TrlError, match="no images"):
        embed(Net(), x[:0])
    with pytest.raises(TrlError, match="pixels lie in"):
        embed(Net(), x.float())
