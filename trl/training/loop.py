"""The training loop: one for every objective, resumable at any step, its best epoch chosen on held-out images.

Under torch.distributed, every process calls `train` alike, on its own device: each takes its rows of every batch and
draws for them alone, gradients are averaged, and all of them end with the same weights.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trl.attacks import Attack
from trl.common.errors import TrlError
from trl.common.progress import Progress, say
from trl.common.seeds import derive_seed
from trl.data import ImageSet, ShuffledStream
from trl.evaluation.run import survivors
from trl.nn.batch_norm import share_batch_norm
from trl.nn.parallel import Processes
from trl.objectives.base import Batch, Objective, Setting, Terms
from trl.threat import Threat
from trl.training.checkpoint import Checkpoint
from trl.training.interrupt import interrupts_noted
from trl.training.optimizer import build_optimizer
from trl.training.schedule import rate_factor, warmed_up
from trl.training.weight_perturbation import Repeatable, gamma_at, kept_buffers, perturbed_weights

if TYPE_CHECKING:
    from trl.config import Train

Row = dict[str, Any]  # one epoch's figures, by the column names of training.csv
CHECK_EVERY = 20  # steps between checks for NaN: each waits for the device


@dataclass(frozen=True)
class Outcome:
    """A finished run: the chosen epoch's weights, its figures, and every epoch's row."""

    state: dict[str, Tensor]
    best: Row
    history: list[Row]


def train(
    model: nn.Module,
    objective: Objective,
    setting: Setting,
    attack_at: Callable[..., Attack],
    validation: ImageSet,
    validation_attack: Attack,
    config: "Train",
    *,
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[Row], None] = lambda row: None,
) -> Outcome:
    """Train `model` in place on its own device, and return the weights of its best validated epoch.

    `attack_at` gives the training attack for an epsilon, which grows to that of `objective.threat` over
    `epsilon_warmup_epochs`, and for the objective's `attack_options`.

    Every random draw is a function of (`setting.seed`, step) and, among several processes, the rank; `checkpoint` holds
    the rest, so a run that is killed and repeated by as many processes ends with the same weights. `on_epoch` receives
    each epoch's row; a resumed run passes the rows of the epochs before it again. Best is the highest
    `objective.selects`, then the highest clean accuracy, then the earliest.
    A first Ctrl-C or SIGTERM to a single process saves a checkpoint after the step, and raises KeyboardInterrupt.
    TrlError if the training attack lacks an option that the objective sets, if the loss or a weight becomes NaN or
    infinite, if the region is empty in a whole batch, if a checkpoint cannot be written, and if the processes cannot
    share a batch evenly or see different checkpoints.
    """
    device = next(model.parameters()).device
    processes = setting.processes
    if config.batch_size % processes.size:
        raise TrlError(f"batch_size is {config.batch_size}, which {processes.size} processes cannot share evenly")
    stream = ShuffledStream(len(setting.data.labels), config.batch_size, derive_seed(setting.seed, "batches"))
    run = Run(model, objective, config, device, processes)
    if checkpoint and (saved := checkpoint.load(device)):
        run.restore(*saved)
        if processes.rank == 0:
            say(f"resumed at step {run.step} of {config.epochs * stream.per_epoch} from {checkpoint.path}")
        for row in run.history:
            on_epoch(row)
    run.share_out()
    total = config.epochs * stream.per_epoch
    model.train()
    with (
        Progress("train", total, "steps", quiet=processes.rank > 0) as progress,
        checkpoint or nullcontext(),
        # several processes would have to agree on the step to stop at
        interrupts_noted(enabled=checkpoint is not None and processes.size == 1) as interrupted,
    ):
        progress.jump(run.step)
        while run.step < total:
            started, epoch = time.monotonic(), run.step / stream.per_epoch  # fractional
            for group in run.optimizer.param_groups:
                group["lr"] = config.optimizer.lr * rate_factor(config.schedule, epoch, config.epochs)
            torch.manual_seed(step_seed(setting, run.step))
            indices = processes.rows(stream.indices(run.step))
            x, y = setting.data.take(indices)
            _check_region(objective.threat, x)
            setting.data.ahead(processes.rows(stream.indices(run.step + 1)))
            warmup = warmed_up(epoch, config.epsilon_warmup_epochs)
            attack = attack_at(objective.threat.epsilon * warmup, **objective.attack_options)
            batch = Batch(x, y, indices, run.step, attack, warmup)
            run.update(batch, step_seed(setting, run.step), gamma_at(epoch, config.weight_perturbation))
            run.seconds += time.monotonic() - started
            end_of_epoch = run.step % stream.per_epoch == 0
            stop = interrupted()
            save = checkpoint is not None and run.agreed(stop or checkpoint.due)
            if end_of_epoch or save or run.step % CHECK_EVERY == 0:
                run.average_sums()
                run.check_finite(stream.per_epoch, thorough=end_of_epoch or save)
                progress.update(run.step - progress.done, **run.shown(stream.per_epoch))
            if end_of_epoch:
                row = run.end_epoch(stream.per_epoch)
                if row["epoch"] % config.validation.every == 0 or run.step == total:
                    row |= run.validate(validation, validation_attack, setting.seed)
                    run.select(row, objective.selects)
                on_epoch(row)
                if not progress.terminal and processes.rank == 0:
                    say(_line(row, config.epochs))
            if checkpoint and processes.rank == 0 and (save or run.step == total):
                checkpoint.save(run.state(), run.best_state, run.best.get("epoch", 0))
            if stop:
                raise KeyboardInterrupt
    return Outcome(run.best_state, run.best, run.history)


class Run:
    """The mutable state of a run: all of it goes into the checkpoint."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        config: "Train",
        device: torch.device,
        processes: Processes,
    ) -> None:
        self.model, self.objective, self.config, self.device = model, objective.to(device), config, device
        self.processes = processes
        self.terms: nn.Module = _Terms(model, objective)
        self.optimizer = build_optimizer(self.terms, config.optimizer)
        average = get_ema_multi_avg_fn(config.ema) if config.ema else None  # type: ignore[no-untyped-call]
        self.ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True) if average else None
        self.step, self.seconds = 0, 0.0
        self.sums: dict[str, Tensor] = {}
        self.history: list[Row] = []
        self.best: Row = {}
        self.best_state: dict[str, Tensor] = {}

    @property
    def evaluated(self) -> nn.Module:
        """The model that is validated and kept: the average of the weights, if there is one."""
        module: nn.Module = self.ema.module if self.ema else self.model
        return module

    def share_out(self) -> None:
        """From here on the processes compute each step together. TrlError if they are not at the same one."""
        if self.processes.size == 1:
            return
        steps: list[int] = [0] * self.processes.size
        dist.all_gather_object(steps, self.step)
        if len(set(steps)) > 1:
            raise TrlError(
                f"the processes' checkpoints differ (they are at steps {', '.join(map(str, steps))}); "
                "start all of them in one folder that they share"
            )
        share_batch_norm(self.model)
        # the objective within, since it calls the model's parts, whose gradients are averaged all the same, and its own
        self.terms = DistributedDataParallel(self.terms)

    def agreed(self, wish: bool) -> bool:
        """What the first process wishes, on all of them."""
        if self.processes.size == 1:
            return wish
        flag = torch.tensor(wish)
        dist.broadcast(flag, 0)
        return bool(flag)

    def update(self, batch: Batch, seed: int = 0, gamma: float = 0.0) -> None:
        """One optimiser step; for `gamma` > 0 with the gradient at perturbed weights, and draws that follow `seed`."""
        if gamma:
            repeatable = Repeatable(batch, derive_seed(seed, "weights"))
            with kept_buffers(self.terms):
                self.backward(repeatable.again())
            with perturbed_weights(self.model, gamma):
                terms = self.backward(repeatable.again())
        else:
            terms = self.backward(batch)
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.terms.parameters(), self.config.clip_norm)
        self.optimizer.step()
        if self.ema:
            self.ema.update_parameters(self.model)
        self.step += 1
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float()

    def backward(self, batch: Batch) -> Terms:
        """The terms of a batch; the gradients of its loss replace the former ones."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            terms: Terms = self.terms(batch)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()  # type: ignore[no-untyped-call]
        return terms

    def average_sums(self) -> None:
        """The processes' figures become those of the whole batch."""
        if self.processes.size > 1:
            values = self.processes.mean(torch.stack([*self.sums.values()]))
            self.sums = dict(zip(self.sums, values.unbind(), strict=True))

    def check_finite(self, per_epoch: int, *, thorough: bool) -> None:
        """TrlError once the loss (or, if `thorough`, a weight) is NaN or infinite."""
        bad = not torch.isfinite(self.sums["loss"])
        if thorough and not bad:
            bad = not all(torch.isfinite(p).all() for p in self.terms.parameters())
        if bad:
            epoch = (self.step - 1) // per_epoch + 1
            raise TrlError(
                f"training diverged: loss or weights are NaN or infinite in epoch {epoch} (step {self.step}); "
                "lower train.optimizer.lr, or set train.clip_norm"
            )

    def shown(self, per_epoch: int) -> dict[str, str]:
        """Figures for the progress bar, averaged over the epoch so far."""
        steps = (self.step - 1) % per_epoch + 1
        return {"loss": f"{float(self.sums['loss']) / steps:.4f}"}

    def end_epoch(self, per_epoch: int) -> Row:
        """Close the epoch: its row of means goes to the history."""
        means = {name: float(value) / per_epoch for name, value in self.sums.items()}
        accuracy = means.pop("accuracy")
        row: Row = {"epoch": self.step // per_epoch, "lr": self.optimizer.param_groups[0]["lr"], **means}
        row |= {"accuracy": accuracy, "seconds": round(self.seconds, 3), "val_clean": None, "val_robust": None}
        self.sums, self.seconds = {}, 0.0
        self.history.append(row)
        return row

    def validate(self, data: ImageSet, attack: Attack, seed: int) -> Row:
        """Clean and robust accuracy on the validation images; the first process tells the others."""
        found = [0.0, 0.0]
        if self.processes.rank == 0:
            correct = survivors(
                *(self.evaluated, data.images, data.labels, attack, self.objective.threat),
                seed=seed,
                name="validation",
                precision=self.config.precision,
            )
            found = [float(flags.float().mean()) for flags in correct]
        if self.processes.size > 1:
            dist.broadcast_object_list(found)
        return {"val_clean": found[0], "val_robust": found[1]}

    def select(self, row: Row, figure: str) -> None:
        """Keep the weights if this epoch is the best so far."""
        if not self.best or (row[figure], row["val_clean"]) > (self.best[figure], self.best["val_clean"]):
            self.best = dict(row)
            self.best_state = {k: v.detach().clone() for k, v in self.evaluated.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, apart from the best weights."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "objective": self.objective.state_dict(),
            **{k: getattr(self, k) for k in ("step", "seconds", "sums", "history", "best")},
        }

    def restore(self, state: dict[str, Any], best: dict[str, Tensor]) -> None:
        """Continue from a saved state and the best weights until then."""
        self.best_state = best
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.objective.load_state_dict(state["objective"])
        for name in ("step", "seconds", "sums", "history", "best"):
            setattr(self, name, state[name])


class _Terms(nn.Module):
    """Model and objective as one module from batch to terms, as DistributedDataParallel wants it."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> Terms:
        terms: Terms = self.objective(self.model, batch)
        return terms


def step_seed(setting: Setting, step: int) -> int:
    """What seeds this process's draws in `step`. The rank counts only beside others."""
    rank = (setting.processes.rank,) if setting.processes.size > 1 else ()
    return derive_seed(setting.seed, "step", step, *rank)


def _check_region(threat: Threat, x: Tensor) -> None:
    """TrlError if the region is empty in every image of a batch: the attack would do nothing."""
    if threat.region is not None:
        mask = threat.around(x).mask
        if mask is not None and not mask.any():
            raise TrlError("the training region is empty in every image of a batch; check its name and options")


def _line(row: Row, epochs: int) -> str:
    """An epoch in one line of a log."""
    shown = {"loss": f"{row['loss']:.4f}", "train": f"{row['accuracy']:.1%}"}
    if row["val_clean"] is not None:
        shown |= {"val_clean": f"{row['val_clean']:.1%}", "val_robust": f"{row['val_robust']:.1%}"}
    return f"epoch {row['epoch']}/{epochs}" + "".join(f"  {k} {v}" for k, v in shown.items())
