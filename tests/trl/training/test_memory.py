"""What training holds in memory: the images as uint8, and no more in a later epoch than in an earlier one."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from psutil import Process

from tests.helpers.tiny_training import ATTACK, THREAT, attack_at, config
from trl.attacks import Attack
from trl.data import ImageSet, TrainingData
from trl.models import build_model
from trl.objectives import build_objective
from trl.objectives.base import Setting
from trl.training import train

SHAPE = (3, 32, 32)
MEGABYTE = 2**20


def noise(n: int) -> ImageSet:
    return ImageSet(torch.randint(256, (n, *SHAPE), dtype=torch.uint8), torch.arange(n) % 3)


def peaks(n: int, epochs: int, **options: Any) -> list[int]:
    """The most memory, in bytes, that any step had found in use by the end of each epoch: `n` images, 100 a step."""
    torch.set_num_threads(1)
    process, found, highest = Process(), list[int](), [0]

    def attack_noted(epsilon: float) -> Attack:
        highest[0] = max(highest[0], process.memory_info().rss)
        return attack_at(epsilon)

    setting = Setting(TrainingData(noise(n), "cpu", crop=2, flip=True), THREAT, embedding=64)
    objective = build_objective("tla", setting, pool=100, **options)
    train(
        build_model("mlp", 3, SHAPE, width=64),
        objective,
        setting,
        attack_noted,
        noise(20),
        ATTACK,
        config(epochs=epochs, batch_size=100),
        on_epoch=lambda row: found.append(highest[0]),
    )
    return found


@pytest.fixture
def fresh() -> Iterator[ProcessPoolExecutor]:
    """Processes of their own, which nothing else has grown."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        yield pool


@pytest.mark.parametrize("negative", ["hard", "queue"])
def test_memory_does_not_grow_over_epochs(fresh: ProcessPoolExecutor, negative: str) -> None:
    found = fresh.submit(peaks, 300, 30, negative=negative).result()
    batch = 100 * 3 * 32 * 32 * 4
    # a quarter of what the 75 steps after the fifth epoch would add, if each left its images behind
    assert found[-1] - found[4] < 75 / 4 * batch


def test_a_larger_data_set_adds_its_uint8_images_and_nothing_else(fresh: ProcessPoolExecutor) -> None:
    small, large = (fresh.submit(peaks, n, 1).result()[-1] for n in (500, 10_500))
    images = 10_000 * 3 * 32 * 32
    assert large - small > images / 2  # the measurement sees them
    assert large - small < 1.25 * images + 8 * MEGABYTE
