"""Where half precision is worth having: bfloat16 multiplies on the device itself, and is not emulated."""

from contextlib import AbstractContextManager, nullcontext

import torch


def has_fast_bf16(device: torch.device | str) -> bool:
    """Does `device` compute in bfloat16 natively? GPUs since Ampere, CPUs with AVX512-BF16 or AMX. Never raises."""
    try:
        device = torch.device(device)
        if device.type == "cuda":
            if not torch.cuda.is_available():
                return False
            with torch.cuda.device(device):
                return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        if device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    except (RuntimeError, AttributeError, AssertionError, ValueError):  # no such device, or an older PyTorch
        pass
    return False


def search_precision(device: torch.device | str) -> AbstractContextManager[object]:
    """The context in which attacks search on `device`: autocast to bfloat16 where that is fast, else as it was.

    Verdicts do not depend on it: `trl.attacks.inner.judge` decides in full precision.
    """
    if has_fast_bf16(device):
        return torch.autocast(torch.device(device).type, torch.bfloat16)
    return nullcontext()
