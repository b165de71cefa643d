"""Of several runs, a sample keeps its first success, or else the result with the highest loss."""

import torch
from torch import Tensor

from trl.attacks.restarts import Kept


def kept() -> Kept:
    """Three samples: one is a success already, the others have the losses 1 and NaN."""
    met = torch.tensor([True, False, False])
    return Kept(torch.zeros(3, 1), met, torch.tensor([0.0, 1.0, torch.nan]))


def note(books: Kept, values: list[float], met: list[bool], loss: list[float]) -> Tensor:
    books.note(books.left(), torch.tensor(values).view(-1, 1), torch.tensor(met, dtype=torch.bool), torch.tensor(loss))
    return books.images.flatten()


def test_a_success_stays_and_the_highest_loss_is_kept() -> None:
    books = kept()
    assert books.left().tolist() == [1, 2]
    assert note(books, [0.1, 0.2], [False, True], [2.0, -5.0]).tolist() == torch.tensor([0.0, 0.1, 0.2]).tolist()
    assert books.left().tolist() == [1]
    assert note(books, [0.3], [False], [1.5])[1] == torch.tensor(0.1)
    assert note(books, [0.4], [True], [-9.0])[1] == torch.tensor(0.4)
    assert books.left().tolist() == []
    assert note(books, [], [], []).shape == (3,)


def test_nan_is_no_higher_loss() -> None:
    books = kept()
    assert note(books, [0.1, 0.2], [False, False], [torch.nan, 3.0]).tolist() == [0.0, 0.0, 0.0]
