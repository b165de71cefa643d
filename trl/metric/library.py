"""Any tuple loss of pytorch-metric-learning in the triplet's place."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trl.common.errors import TrlError, in_one_line


def library_loss(name: str, options: Mapping[str, Any], classes: int, embedding: int | None) -> nn.Module:
    """pytorch-metric-learning's loss `name`, as (anchor, positive, negative, y, y_negative, found) → scalar.

    It is given the mined triplets as its tuples: a pair loss takes their pairs, and a loss with weights of its own
    (proxies, class centres) the images in them. What such a loss must know, the number of `classes` and the width
    `embedding` of [n,embedding], is no option of it. Weights are drawn from the global generator.

    TrlError for an unknown name, options that do not fit, no `embedding` where it is needed, and, by a trial, losses
    that take no tuples, do not heed them, or cannot train for more than a step.
    """
    given = _given(name, classes, embedding)
    if known := sorted(given.keys() & options.keys()):
        raise TrlError(f"metric_loss {name}: leave {known[0]} out of metric_options: data and model say it")
    if None in given.values():
        raise TrlError(f"metric_loss {name} needs the width of embeddings: give it to Setting, model.head.in_features")
    try:
        loss = OfTriplets(_known(name)(**given, **options))
        with torch.random.fork_rng(devices=[]):
            tried = OfTriplets(_known(name)(**given, **options))  # since some losses keep what they have seen
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise TrlError(f"metric_loss {name}: metric_options do not fit: {in_one_line(error)}") from None
    _try(name, tried, classes, embedding or 16)
    return loss


def offered_loss(name: str) -> str:
    """`name`, if it is "triplet" or a loss that can take the triplet's place; TrlError otherwise, as `library_loss`.

    A loss that has options without a default is tried when these are known.
    """
    if name == "triplet":
        return name
    given = _given(name, classes=3, embedding=16)
    parameters = list(inspect.signature(_known(name).__init__).parameters.values())[1:]
    open_ended = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if all(p.name in given or p.default is not p.empty or p.kind in open_ended for p in parameters):
        library_loss(name, {}, classes=3, embedding=16)
    return name


class OfTriplets(nn.Module):
    """A loss of the library as a function of triplets; without any, it is 0 with a gradient of 0."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(
        self, anchor: Tensor, positive: Tensor, negative: Tensor, y: Tensor, y_negative: Tensor, found: Tensor
    ) -> Tensor:
        """The loss, scalar, of embeddings [n,d] each, their labels [n] and which triplets there are, bool [n]."""
        rows, n = found.nonzero().flatten(), len(anchor)
        embeddings = torch.cat([anchor, positive, negative])
        labels = torch.cat([y, y, torch.where(found, y_negative, y)])  # what was not found may have no label
        with torch.autocast(anchor.device.type, enabled=False):
            loss: Tensor = self.loss(embeddings, labels, indices_tuple=(rows, rows + n, rows + 2 * n))
        # every weight takes part in every step, as processes that average gradients expect
        return loss * found.any() + sum(0 * weight.sum() for weight in self.parameters())


def _known(name: str) -> Any:
    from pytorch_metric_learning import losses

    known: dict[str, Any] = {
        n: c for n, c in vars(losses).items() if inspect.isclass(c) and n.endswith("Loss") and not n.startswith("Base")
    }
    if name not in known:
        raise TrlError(f"unknown metric_loss {name!r}: use triplet, or of pytorch-metric-learning {', '.join(known)}")
    return known[name]


def _given(name: str, classes: int, embedding: int | None) -> dict[str, int | None]:
    """What the loss must be told of data and model: those of its parameters, and its bases', without a default."""
    facts = {"num_classes": classes, "embedding_size": embedding, "descriptors_dim": embedding}
    constructors = [base.__init__ for base in _known(name).__mro__ if "__init__" in vars(base)]
    parameters = [p for constructor in constructors for p in inspect.signature(constructor).parameters.values()]
    return {p.name: facts[p.name] for p in parameters if p.name in facts and p.default is p.empty}


def _try(name: str, loss: OfTriplets, classes: int, embedding: int) -> None:
    """TrlError unless the loss can be trained on triplets step by step, and depends on which of them were mined."""
    generator = torch.Generator().manual_seed(0)
    tensors = torch.randn(3, 8, embedding, generator=generator).requires_grad_()
    kinds = min(3, classes)
    kind = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]) % kinds  # of classes of several sizes, which some losses refuse
    y, y_negative = classes - 1 - kind, classes - 1 - (kind + 1) % kinds
    mined = torch.ones(8, dtype=torch.bool), torch.tensor([True, True, False] * 2 + [True, False])
    values = []
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        for found in mined:
            try:
                value = loss(*tensors, y, y_negative, found)
                value.backward()
            except Exception as error:  # whatever the library raises
                raise TrlError(
                    f"metric_loss {name} cannot be trained on mined tuples ({in_one_line(error)}): use another"
                ) from None
            values.append(float(value.detach()))
    if values[0] == values[1]:
        raise TrlError(f"metric_loss {name} does not heed the mined tuples: use another")
