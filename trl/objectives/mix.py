"""Training on real images and on a proxy's (Sehwag et al., ICLR 2022, arXiv 2104.09425), by any objective."""

from dataclasses import replace
from typing import Any

from torch import nn

from trl.common.errors import TrlError
from trl.common.seeds import derive_seed
from trl.data import ShuffledStream, TrainingData
from trl.objectives.base import Batch, Objective, Setting, Terms
from trl.objectives.build import build_objective


def build_mixed(
    name: str, setting: Setting, proxies: TrainingData, batch_size: int, *, gamma: float, **options: Any
) -> Objective:
    """The objective `name` on `setting.data` and on `proxies`, of which each step takes `batch_size`: see `Mixed`."""
    if batch_size > len(proxies.labels):
        raise TrlError(f"a step takes {batch_size} images of the proxy, which has {len(proxies.labels)}; make more")
    own = replace(setting, data=proxies)
    return Mixed(build_objective(name, setting, **options), build_objective(name, own, **options), batch_size, gamma)


class Mixed(Objective):
    """L = γ·L(real) + (1 - γ)·L(proxy), each a batch of its own and γ = `gamma` in [0, 1]; with 1, L(real) alone.

    `real` and `proxy` are the same objective, each with its own data: a triplet is either of real images or of
    proxies. Weights of their own are those of `real`. A step takes `batch_size` proxies, over all processes.
    """

    def __init__(self, real: Objective, proxy: Objective, batch_size: int, gamma: float) -> None:
        super().__init__(real.setting)
        self.real, self.proxy, self.gamma = real, proxy, gamma
        self.selects, self.attack_options, self.threat = real.selects, real.attack_options, real.threat
        for name, module in real.named_children():
            setattr(proxy, name, module)
        own = proxy.setting
        self.stream = ShuffledStream(len(own.data.labels), batch_size, derive_seed(own.seed, "proxies"))

    def forward(self, model: nn.Module, batch: Batch) -> Terms:
        """Terms: loss, those of the real batch (loss as real_loss), proxy_loss, proxy_accuracy."""
        real: Terms = self.real(model, batch)
        if self.gamma == 1:  # bit for bit as without proxies, which would also enter the statistics of batch norm
            return real
        own, step = self.proxy.setting, batch.step
        indices = own.processes.rows(self.stream.indices(step))
        x, y = own.data.take(indices)
        own.data.ahead(own.processes.rows(self.stream.indices(step + 1)))
        proxy: Terms = self.proxy(model, replace(batch, x=x, y=y, indices=indices))
        loss = self.gamma * real["loss"] + (1 - self.gamma) * proxy["loss"]
        shown = {"real_loss": real["loss"], "proxy_loss": proxy["loss"], "proxy_accuracy": proxy["accuracy"]}
        return {**real, "loss": loss, **shown}
