"""Any tuple loss of pytorch-metric-learning in the triplet's place."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trl.common.errors import TrlError, in_one_line

MetricLoss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def library_loss(name: str, options: Mapping[str, Any]) -> MetricLoss:
    """pytorch-metric-learning's loss `name`, as (anchor, positive, negative, y, y_negative, found) → scalar.

    It is given the mined triplets as its tuples; a pair loss takes their pairs. TrlError for an unknown name, options
    that do not fit, losses with weights of their own (proxies, class centres), which the optimiser would not see, and
    losses that take no tuples, or do not heed them, by a trial.
    """
    loss_class = _known(name)
    try:
        loss = loss_class(**options)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise TrlError(f"metric_loss {name}: metric_options do not fit: {in_one_line(error)}") from None
    if any(True for _ in loss.parameters()):
        raise TrlError(f"metric_loss {name} has weights of its own, which are not trained here: use a tuple loss")
    _try(name, _of_triplets(loss_class(**options)))  # another one, since some losses keep what they have seen
    return _of_triplets(loss)


def offered_loss(name: str) -> str:
    """`name`, if it is "triplet" or a loss that can take the triplet's place; TrlError otherwise, as `library_loss`.

    A loss that has options without a default is tried when these are known.
    """
    from pytorch_metric_learning.losses.mixins import WeightMixin

    if name == "triplet":
        return name
    loss_class = _known(name)
    if issubclass(loss_class, WeightMixin):
        raise TrlError(f"metric_loss {name} has weights of its own, which are not trained here: use a tuple loss")
    parameters = list(inspect.signature(loss_class.__init__).parameters.values())[1:]
    if all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        library_loss(name, {})
    return name


def _known(name: str) -> Any:
    from pytorch_metric_learning import losses

    known: dict[str, Any] = {
        n: c for n, c in vars(losses).items() if inspect.isclass(c) and n.endswith("Loss") and not n.startswith("Base")
    }
    if name not in known:
        raise TrlError(f"unknown metric_loss {name!r}: use triplet, or of pytorch-metric-learning {', '.join(known)}")
    return known[name]


def _of_triplets(loss: nn.Module) -> MetricLoss:
    def compute(
        anchor: Tensor, positive: Tensor, negative: Tensor, y: Tensor, y_negative: Tensor, found: Tensor
    ) -> Tensor:
        rows, n = found.nonzero().flatten(), len(anchor)
        embeddings = torch.cat([anchor, positive, negative])
        labels = torch.cat([y, y, y_negative])
        result: Tensor = loss(embeddings, labels, indices_tuple=(rows, rows + n, rows + 2 * n))
        return result

    return compute


def _try(name: str, compute: MetricLoss) -> None:
    """TrlError unless the loss can be computed of triplets, and depends on which of them were mined."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        anchor, positive, negative = torch.randn(3, 8, 16, generator=generator)
        y = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])  # of classes of several sizes, which some losses refuse
        mined = torch.ones(8, dtype=torch.bool), torch.tensor([True, True, False] * 2 + [True, False])
        try:
            every, some = (float(compute(anchor, positive, negative, y, (y + 1) % 3, found)) for found in mined)
        except Exception as error:  # whatever the library raises
            raise TrlError(f"metric_loss {name} takes no mined tuples ({in_one_line(error)}): use another") from None
    if every == some:
        raise TrlError(f"metric_loss {name} does not heed the mined tuples: use another")
