import pytest
import torch
from torch import Tensor, nn

from trl.common.errors import TrlError
from trl.common.images import as_input
from trl.nn.inference import device_of, full_precision, try_out


def precisions() -> list[str]:
    backends = torch.backends
    products = (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul)
    return [product.fp32_precision for product in products]


def test_full_precision_is_lent() -> None:
    def fails() -> None:
        with full_precision(torch.device("cpu")):
            assert precisions() == ["ieee"] * 4
            assert not torch.is_autocast_enabled("cpu")
            raise KeyError

    setting = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        lower = precisions()
        with torch.autocast("cpu"), pytest.raises(KeyError):
            fails()
        assert precisions() == lower != ["ieee"] * 4
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(setting)


def test_bytes_become_fractions() -> None:
    x = as_input(torch.tensor([[0, 51, 255]], dtype=torch.uint8), torch.device("cpu"))
    torch.testing.assert_close(x, torch.tensor([[0.0, 0.2, 1.0]]))


def test_a_model_without_parameters_is_on_the_cpu() -> None:
    assert device_of(nn.Identity()).type == "cpu"
    assert device_of(nn.Linear(1, 1, device="meta")).type == "meta"
    assert device_of(nn.BatchNorm1d(1, affine=False, device="meta")).type == "meta"


class Scaling(nn.Module):
    """Halves its input in place, where autograd does not see it: the images stay in [0, 1]."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "data":
            x.data.mul_(0.5)
        else:
            x.detach().numpy()[:] *= 0.5
        return x.flatten(1)


@pytest.mark.parametrize("way", ["data", "numpy"])
def test_writing_into_the_input_is_seen_behind_autograd(way: str) -> None:
    with pytest.raises(TrlError, match="modifies its input"):
        try_out(Scaling(way), torch.rand(3, 1, 1, 2))


def test_no_images_are_one_line() -> None:
    with pytest.raises(TrlError, match="no images"):
        try_out(nn.Flatten(), torch.rand(0, 1, 1, 2))


def test_nan_pixels_are_called_so() -> None:
    with pytest.raises(TrlError, match="NaN"):
        as_input(torch.tensor([[0.5, torch.nan]]), torch.device("cpu"))
