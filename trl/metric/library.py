"""Any tuple loss of pytorch-metric-learning in the triplet's place."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from trl.errors import TrlError

MetricLoss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def library_loss(name: str, options: Mapping[str, Any]) -> MetricLoss:
    """pytorch-metric-learning's loss `name`, as (anchor, positive, negative, y, y_negative, found) → scalar.

    It is given the mined triplets as its tuples; a pair loss takes their pairs. TrlError for an unknown name, options
    that do not fit, and losses with weights of their own (proxies, class centres), which the optimiser would not see.
    """
    from pytorch_metric_learning import losses

    known = [
        n for n, c in vars(losses).items() if inspect.isclass(c) and n.endswith("Loss") and not n.startswith("Base")
    ]
    if name not in known:
        raise TrlError(f"unknown metric_loss {name!r}: use triplet, or of pytorch-metric-learning {', '.join(known)}")
    try:
        loss = getattr(losses, name)(**options)
    except TypeError as error:
        raise TrlError(f"metric_loss {name}: metric_options do not fit: {error}") from None
    if any(True for _ in loss.parameters()):
        raise TrlError(f"metric_loss {name} has weights of its own, which are not trained here: use a tuple loss")

    def compute(
        anchor: Tensor, positive: Tensor, negative: Tensor, y: Tensor, y_negative: Tensor, found: Tensor
    ) -> Tensor:
        rows, n = found.nonzero().flatten(), len(anchor)
        embeddings = torch.cat([anchor, positive, negative])
        labels = torch.cat([y, y, y_negative])
        result: Tensor = loss(embeddings, labels, indices_tuple=(rows, rows + n, rows + 2 * n))
        return result

    return compute
