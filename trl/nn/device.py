"""Choose the device that a command runs on."""

import os

from trl.common.errors import TrlError


def choose_device(name: str | None = None) -> str:
    """`name`, or `TRL_DEVICE` (cpu, cuda, cuda:1, …), or the GPU if there is one; TrlError if it does not exist."""
    import torch  # local, so that --help does not load PyTorch

    wanted = name or os.environ.get("TRL_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        said = "device " if name else "TRL_DEVICE="
        raise TrlError(f"{said}{wanted} cannot be used: {str(error).splitlines()[0]}") from None
    return wanted
