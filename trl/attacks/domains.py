"""Several domains as one module: models, or transformations of the input, whose logits stand side by side."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from trl.attacks.criterion import Criterion
from trl.attacks.losses import Loss
from trl.common.errors import TrlError

Transformation = Callable[[Tensor], Tensor]


class SideBySide(nn.Module):
    """Maps images x [n,…] to the logits of each of the `models`, one after another: [n, models·k].

    TrlError for fewer than two models, and where they have different numbers of classes.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        _check_count(len(models))
        self.models = nn.ModuleList(models)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, models·k]."""
        logits = [model(x) for model in self.models]
        classes = [part.shape[1] for part in logits]
        if len(set(classes)) > 1:
            raise TrlError(f"the models have {', '.join(map(str, classes))} classes; they need the same ones")
        return torch.cat(logits, 1)


class Transformed(nn.Module):
    """`model` of the transformed image. A transformation that draws at random stands for its family: use `EoT`."""

    def __init__(self, model: nn.Module, transformation: Transformation) -> None:
        super().__init__()
        self.model, self.transformation = model, transformation

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n,k]."""
        logits: Tensor = self.model(self.transformation(x))
        return logits


class FoolsAll(Criterion):
    """Misclassified in every one of the `domains` of a `SideBySide`; the loss is that of the hardest domain.

    TrlError for fewer than two domains.
    """

    def __init__(self, domains: int) -> None:
        _check_count(domains)
        self.domains = domains

    def __repr__(self) -> str:
        return f"FoolsAll({self.domains})"

    def loss(self, loss: Loss) -> Loss:
        """The least of `loss` over the domains."""
        return lambda outputs, y: self.losses(loss, outputs, y).amin(1)

    def losses(self, loss: Loss, outputs: Tensor, y: Tensor) -> Tensor:
        """`loss` in each domain: [n,domains]."""
        return torch.stack([loss(part, y) for part in self._parts(outputs)], 1)

    def met(self, outputs: Tensor, y: Tensor) -> Tensor:
        """No domain predicts y."""
        return self.fooled(outputs, y).all(1)

    def fooled(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Which domains do not predict y: bool [n,domains]."""
        return torch.stack([part.argmax(1) != y for part in self._parts(outputs)], 1)

    def _parts(self, outputs: Tensor) -> tuple[Tensor, ...]:
        if outputs.shape[1] % self.domains:
            raise TrlError(
                f"FoolsAll({self.domains}) needs the logits of {self.domains} models side by side, "
                f"not {outputs.shape[1]} values; attack SideBySide(models)"
            )
        return outputs.chunk(self.domains, 1)


def _check_count(domains: int) -> None:
    if domains < 2:
        raise TrlError(
            f"min-max needs at least two domains, not {domains}; against one model use an attack such as pgd"
        )
