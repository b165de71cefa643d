"""Square: linear models, whose best perturbation is known; what it asks of the model; success and restarts."""

import pytest
import torch
from torch import Tensor, nn

from trl.attacks import Targeted, square
from trl.common.errors import TrlError
from trl.threat import Linf, Threat, build_threat

norms = pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 0.5), ("l1", 1.0)])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Scores(nn.Module):
    """A linear model on images of any shape, through which no gradient passes; it notes the sizes of its batches."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.sizes = weight, bias, list[int]()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return x.flatten(1) @ self.weight.T + self.bias


def confident(shape: tuple[int, ...], classes: int = 2) -> Scores:
    """Class 0 wins everywhere; the runner-up is class 1."""
    weight = torch.randn(classes, torch.Size(shape).numel(), dtype=torch.float64)
    return Scores(weight, torch.tensor([0.0, -200.0] + [-900.0] * (classes - 2), dtype=torch.float64))


def decrease(model: Scores, x: Tensor, x_adv: Tensor) -> Tensor:
    return ((x - x_adv).flatten(1) @ (model.weight[0] - model.weight[1])).double()


@pytest.mark.parametrize(
    ("shape", "classes"),
    [((1, 6, 6), 2), ((3, 4, 5), 3), ((2, 1, 9), 2), ((16,), 200), ((4, 4), 3), ((2, 2, 3, 3), 2), ((1, 1, 1), 2)],
)
def test_linear_optimum_in_linf(shape: tuple[int, ...], classes: int) -> None:
    """Single values decide at last, since every value is at an end of its range and each kept change is a gain."""
    model, x = confident(shape, classes), 0.2 + 0.6 * torch.rand(4, *shape, dtype=torch.float64)
    x_adv = square(model, x, torch.zeros(4, dtype=torch.long), Linf(0.1), queries=1000)
    best = 0.1 * (model.weight[0] - model.weight[1]).norm(1)
    assert (decrease(model, x, x_adv) <= best + 1e-9).all()
    assert (decrease(model, x, x_adv) >= 0.999 * best).all()


@pytest.mark.parametrize(("norm", "dual", "share"), [("l2", 2, 0.4), ("l1", float("inf"), 0.35)])
@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 4, 5), (36,)])
def test_linear_optimum_is_neared_in_l2_and_l1(norm: str, dual: float, share: float, shape: tuple[int, ...]) -> None:
    """Windows are at least three wide, so that it is not reached; noise of that norm has 0 on average."""
    model, x = confident(shape), 0.5 + 0.1 * torch.rand(8, *shape, dtype=torch.float64)
    x_adv = square(model, x, torch.zeros(8, dtype=torch.long), build_threat(norm, 0.3), queries=600)
    best = 0.3 * (model.weight[0] - model.weight[1]).norm(dual)
    assert (decrease(model, x, x_adv) <= best + 1e-9).all()
    assert (decrease(model, x, x_adv) > share * best).all()


@norms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5, 7), (1, 1, 1), (2, 9, 1), (50,), (1,), (2, 3, 4, 4)])
def test_stays_inside_after_many_changes(norm: str, epsilon: float, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    threat, x = build_threat(norm, epsilon), (torch.rand(5, *shape) * 1.6 - 0.3).clamp(0, 1).to(dtype)
    model = confident(shape)
    model.weight, model.bias = model.weight.to(dtype), model.bias.to(dtype)
    x_adv = square(model, x, torch.zeros(5, dtype=torch.long), threat, queries=100)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    length = threat.distance(x_adv.double(), x.double())
    assert length.max() <= epsilon + 1e-6
    if max(shape) > 20:
        assert (length > 0.9 * epsilon).all()


def test_asks_once_per_query_and_not_at_all_for_what_is_done() -> None:
    model, x, y = confident((1, 6, 6)), torch.rand(8, 1, 6, 6).double(), torch.tensor([0, 1] * 4)
    x_adv = square(model, x, y, Linf(0.1), queries=50, restarts=2)
    verdict = 1  # on each restart's result
    assert model.sizes == [8] + [4] * 2 * (50 + verdict)  # first, which are done already
    assert torch.equal(x_adv[1::2], x[1::2])
    assert (decrease(model, x, x_adv)[::2] > 0).all()


def threshold(margins: Tensor) -> tuple[nn.Module, Tensor]:
    """Values below ½ mean class 0; images that are that far above it, for class 1."""
    model = Scores(torch.tensor([[-36.0] * 36, [0.0] * 36]), torch.tensor([36.0 * 18, 0.0]))
    return model, (0.5 + margins)[:, None, None, None].expand(-1, 1, 6, 6).clone()


@norms
def test_what_is_done_leaves_the_batch_and_keeps_its_first_success(norm: str, epsilon: float) -> None:
    model, x = threshold(torch.linspace(0, 0.2, 41)[1:])
    y = torch.ones(40, dtype=torch.long)
    sizes = model.sizes
    x_adv = square(model, x, y, build_threat(norm, epsilon), queries=400)
    success = model(x_adv).argmax(1) != y
    reach = {"linf": epsilon, "l2": epsilon / 6, "l1": epsilon / 36}[norm]  # change of the mean
    margins = (x - 0.5).mean((1, 2, 3))
    assert not success[margins > reach + 1e-6].any()
    assert success[margins < 0.6 * reach].all()
    *asked, verdict, after = sizes  # `after` is ours
    assert asked == sorted(asked, reverse=True)
    assert asked[-1] < verdict == after == 40
    values = x_adv.flatten(1).mean(1)
    assert (values[success] <= 0.5 + 1e-6).all()
    assert (values[~success] > 0.5).all()
    assert (values[~success] < (x.flatten(1).mean(1) - 0.4 * reach)[~success]).all()


@norms
def test_targeted(norm: str, epsilon: float) -> None:
    model, x = confident((1, 6, 6), 3), 0.3 + 0.4 * torch.rand(6, 1, 6, 6).double()
    model.bias = torch.tensor([0.4, 0.0, 0.0]) - x.mean() * model.weight.sum(1)
    for loss in ("cw", "ce", "dlr"):
        for target in range(3):
            y = torch.full((6,), target)
            x_adv = square(
                model,
                x,
                y,
                build_threat(norm, 6 * epsilon),
                Targeted(),
                queries=200,
                loss=loss,  # type: ignore[arg-type]
            )
            assert (model(x_adv).argmax(1) == target).all()


@norms
def test_same_seed_same_result_and_restarts_only_add(norm: str, epsilon: float) -> None:
    threat: Threat = build_threat(norm, epsilon)
    model, x = threshold(torch.linspace(0, 0.2, 41)[1:])
    y, results = torch.ones(40, dtype=torch.long), []
    for restarts in (1, 1, 3):
        torch.manual_seed(7)
        results.append(square(model, x, y, threat, queries=15, restarts=restarts))
    assert torch.equal(results[0], results[1])
    once, thrice = (model(result).argmax(1) != y for result in results[1:])
    assert torch.equal(results[2][once], results[0][once])
    assert (thrice >= once).all()
    values = [result.flatten(1).mean(1)[~thrice] for result in results]
    assert (values[2] <= values[0]).all()
    assert (values[2] < values[0]).any()


def test_small_gains_count_under_autocast() -> None:
    """In bfloat16, hardly a step changes the loss at all."""
    x = torch.rand(4, 36).clamp(0.2, 0.8)
    model = nn.Linear(36, 2)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([500.0, 0.0]))
    y = torch.zeros(4, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        x_adv = square(model, x, y, Linf(0.1), queries=500)
    weight = model.weight.detach()[1] - model.weight.detach()[0]
    assert ((x_adv - x) @ weight > 0.9 * 0.1 * weight.norm(1)).all()


def test_a_schedule_that_is_not_rescaled_stays_with_large_windows() -> None:
    """200 queries are its beginning: windows of a quarter of the first area, which are too large for the optimum."""
    model, x = confident((1, 12, 12)), torch.full((4, 1, 12, 12), 0.5, dtype=torch.float64)
    found = []
    for rescaled in (True, False):
        x_adv = square(model, x, torch.zeros(4).long(), Linf(0.1), queries=200, rescale_schedule=rescaled)
        found.append(decrease(model, x, x_adv))
    assert (found[0] > 1.1 * found[1]).all()


def test_options_that_do_not_fit() -> None:
    model, x, y = confident((4,)), torch.rand(2, 4).double(), torch.zeros(2, dtype=torch.long)
    for options in ({"queries": 0}, {"restarts": 0}, {"p_init": 0}, {"loss": "hinge"}):
        with pytest.raises(TrlError):
            square(model, x, y, Linf(0.1), **options)  # type: ignore[arg-type]

    class Other(Linf):
        name = "l7"

    with pytest.raises(TrlError, match="norms linf, l2, l1, not l7"):
        square(model, x, y, Other(0.1))


@norms
def test_the_model_meets_one_memory_format(norm: str, epsilon: float) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    x = torch.rand(24, 3, 6, 6).to(memory_format=torch.channels_last)
    sizes, formats = [], []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    model.register_forward_pre_hook(
        lambda _, inputs: formats.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    with torch.no_grad():
        y = model(x).argmax(1)
    x_adv = square(model, x, y, build_threat(norm, epsilon), queries=60)
    assert len(set(sizes)) > 1  # also after some have left
    assert all(formats)
    assert x_adv.is_contiguous(memory_format=torch.channels_last)
