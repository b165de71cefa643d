"""What counts as success for an attack: an object that it asks for a loss to ascend and for a verdict per sample."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from trl.attacks.losses import Loss


class Criterion(ABC):
    """Success on a sample, given the model's outputs [n,…] and the labels y [n] that the attack was called with."""

    def view(self, model: nn.Module) -> nn.Module:
        """The model as the attack runs it; a criterion that needs more than logits adds columns to them here."""
        return model

    @abstractmethod
    def loss(self, loss: Loss) -> Loss:
        """What to ascend, a function (outputs, y) → [n], for an attack that was asked to use `loss`."""

    @abstractmethod
    def met(self, outputs: Tensor, y: Tensor) -> Tensor:
        """bool [n]: is it a success?"""


class Misclassified(Criterion):
    """Any class but y: the default."""

    def loss(self, loss: Loss) -> Loss:
        """`loss` itself."""
        return loss

    def met(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The predicted class is not y."""
        return outputs.argmax(1) != y


class Targeted(Criterion):
    """Class y itself: the attack is called with the class to reach in the place of the true one."""

    def loss(self, loss: Loss) -> Loss:
        """`loss` of the target, negated."""
        return lambda outputs, y: -loss(outputs, y)

    def met(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The predicted class is y."""
        return outputs.argmax(1) == y


MISCLASSIFIED = Misclassified()
