"""One stage's work by several processes, each with a device of its own, which share every batch (torch.distributed)."""

import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

from tasks.stage import Stage
from trl.common.errors import TrlError

PATIENCE = timedelta(hours=2)  # of processes that wait for the first one, which validates; a death is noticed at once


def count_of(variable: str, environ: Mapping[str, str]) -> int | None:
    """The number, at least 1, that an environment variable holds; None if it is empty, TrlError if it is another."""
    value = environ.get(variable, "")
    if value and not (value.isdecimal() and int(value) > 0):
        raise TrlError(f"{variable}={value}: must be a whole number of at least 1")
    return int(value) if value else None


def wanted_processes(environ: Mapping[str, str] = os.environ) -> int:
    """How many processes `TRL_PROCESSES` asks for; TrlError if that is no number."""
    return count_of("TRL_PROCESSES", environ) or 1


def device_of(local_rank: int, wanted: str, gpus: int) -> str:
    """The device of one of several processes on a machine with so many `gpus`, where `wanted` is TRL_DEVICE.

    The GPU of its number, or the CPU; TrlError if that GPU is missing, or if `wanted` names one device for all of them.
    """
    kind, _, number = wanted.partition(":")
    if number:
        raise TrlError(
            f"TRL_DEVICE={wanted}: is one device, which several processes cannot share; set TRL_DEVICE={kind}, "
            "and choose GPUs with CUDA_VISIBLE_DEVICES"
        )
    if wanted not in ("", "cuda") or (not wanted and not gpus):
        return wanted or "cpu"
    if local_rank >= gpus:
        raise TrlError(f"process {local_rank + 1} has no GPU of its own: there are {gpus}; lower TRL_PROCESSES")
    return f"cuda:{local_rank}"


def share_work(work: Callable[[Stage, str], None], stage: Stage) -> None:
    """Do `work` (stage, device) in as many processes as wanted, or as one of those that torchrun has started.

    TrlError if a process ends early, which also ends the others; a TrlError of its own is passed on.
    """
    from trl.nn.device import choose_device

    if "TORCHELASTIC_RUN_ID" in os.environ:
        _join(work, stage, int(os.environ["LOCAL_RANK"]), "env://")
    elif (count := wanted_processes()) > 1:
        _start(work, stage, count)
    else:
        work(stage, choose_device())


def _start(work: Callable[[Stage, str], None], stage: Stage, count: int) -> None:
    from torch.multiprocessing.spawn import ProcessExitedException, spawn

    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # that it ends the others is no news
    with tempfile.TemporaryDirectory() as folder:
        try:
            spawn(_process, (work, stage, count, folder), nprocs=count, daemon=True)  # type: ignore[no-untyped-call]
        except ProcessExitedException as error:
            said = Path(folder, str(error.error_index))
            if said.exists():
                raise TrlError(said.read_text()) from None
            how = f"was ended by {error.signal_name}" if error.signal_name else f"ended with status {error.exit_code}"
            which = f"process {error.error_index + 1} of {count}"
            raise TrlError(f"{which} {how}; repeat the command to go on from the last checkpoint") from None


def _process(rank: int, work: Callable[[Stage, str], None], stage: Stage, count: int, folder: str) -> None:
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    try:
        _join(work, stage, rank, f"file://{folder}/meeting", rank, count)
    except TrlError as error:
        Path(folder, str(rank)).write_text(str(error))
        raise SystemExit(1) from None


def _join(
    work: Callable[[Stage, str], None], stage: Stage, local_rank: int, meeting: str, rank: int = -1, size: int = -1
) -> None:
    """Work as one process of a group, with the GPU of its number, or on the CPU."""
    import torch
    import torch.distributed as dist

    from trl.nn.device import choose_device

    device = choose_device(device_of(local_rank, os.environ.get("TRL_DEVICE", ""), torch.cuda.device_count()))
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, meeting, timeout=PATIENCE, rank=rank, world_size=size)
    try:
        work(stage, device)
    finally:
        dist.destroy_process_group()
