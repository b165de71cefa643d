import pytest
import torch
from torch import Tensor, nn

from trl.detectors.observe import observe
from trl.models import Classifier, build_model

# per architecture: the widths of the layers that are read, the embedding last
WIDTHS = {
    "mlp": [256, 256],
    "strided_cnn": [16, 32, 100],
    "mnist_cnn": [32, 64, 128, 256, 1024],
    "resnet18": [64, 128, 256, 512],
    "preact_resnet18": [64, 128, 256, 512],
    "wrn_10_1": [16, 32, 64],
}


def made(name: str) -> tuple[Classifier, Tensor]:
    torch.manual_seed(0)
    model = build_model(name, 4, (1, 16, 16)).eval()
    return model, torch.rand(3, 1, 16, 16)


@pytest.mark.parametrize("name", WIDTHS)
def test_what_is_read(name: str) -> None:
    model, x = made(name)
    for reads, expected in (("logits", model(x)), ("features", model.features(x))):
        logits, seen = observe(model, x, reads)
        assert torch.equal(logits, model(x))
        assert torch.equal(seen, expected)
    logits, seen = observe(model, x, "layers")
    assert torch.equal(logits, model(x))
    layers = seen.split(WIDTHS[name], 1)
    assert torch.equal(layers[-1], model.features(x))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_layers_are_averages_of_their_maps() -> None:
    model, x = made("strided_cnn")
    seen = observe(model, x, "layers")[1]
    torch.testing.assert_close(seen[:, :16], model.body[:2](x).mean((2, 3)))
    torch.testing.assert_close(seen[:, 16:48], model.body[:4](x).mean((2, 3)))
    model, x = made("wrn_10_1")
    seen = observe(model, x, "layers")[1]
    torch.testing.assert_close(seen[:, :16], model.body[:2](x).mean((2, 3)))
    torch.testing.assert_close(seen[:, 16:48], model.body[:3](x).mean((2, 3)))


def test_layers_of_any_body() -> None:
    """Activations and groups count, whatever the embedding is made of."""
    group = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
    body = nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.LeakyReLU(0.1), nn.Linear(7, 6), nn.ReLU(), group)
    model, x = Classifier(body, 5, 2, (1, 4, 4)), torch.rand(3, 1, 4, 4)
    assert torch.equal(observe(model, x, "layers")[1], torch.cat([body[:3](x), body[:5](x), body(x)], 1))


@pytest.mark.parametrize("name", WIDTHS)
def test_every_layer_has_a_gradient(name: str) -> None:
    model, x = made(name)
    x.requires_grad_()
    for layer in observe(model, x, "layers")[1].split(WIDTHS[name], 1):
        (gradient,) = torch.autograd.grad(layer.sum(), x, retain_graph=True)
        assert gradient.abs().sum() > 0
