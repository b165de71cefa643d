"""Describe the machine and software behind a measurement."""

import platform
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from trl.nn.precision import has_fast_bf16


def describe(device: str, packages: Iterable[str]) -> dict[str, Any]:
    """Command, date, processor, PyTorch settings and versions (None: not installed), ready for JSON."""
    gpu = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None
    return {
        "command": " ".join(["python -m", *_command()]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu(),
            "gpu": gpu,
            "system": platform.platform(terse=True),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "device": device,
            "fast bf16": has_fast_bf16(device),
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in ("torch", *packages)}},
    }


def headline(found: dict[str, Any]) -> str:
    """The first line of a report: the machine, versions, date and seed."""
    machine = found["machine"]
    return (
        f"{machine['gpu'] or machine['cpu']}, {machine['threads']} threads, {machine['capability']}, PyTorch "
        f"{found['versions']['torch']}, {found['date'][:10]}, seed {found['seed']}"
    )


def _command() -> list[str]:
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return [module.name if module else Path(sys.argv[0]).stem, *sys.argv[1:]]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
