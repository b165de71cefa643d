"""Half precision only where the device has it."""

import pytest
import torch

from trl.precision import has_fast_bf16, search_precision


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "cuda", "cuda:63", "mps", "meta", "no such device"])
def test_answers_for_any_device(device: torch.device | str) -> None:
    assert has_fast_bf16(device) in (True, False)


@pytest.mark.parametrize("device", ["meta", "no such device", "cuda:63"])
def test_no_device_no_bf16(device: str) -> None:
    assert not has_fast_bf16(device)


@pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (False, True)])
def test_cpu(avx512: bool, amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert has_fast_bf16("cpu") == (avx512 or amx)
    x = torch.rand(4, 4)
    with search_precision("cpu"):
        assert (x @ x).dtype == (torch.bfloat16 if avx512 or amx else torch.float32)
    assert (x @ x).dtype == torch.float32


def test_older_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert not has_fast_bf16("cpu")


@pytest.mark.parametrize("native", [False, True])
def test_cuda(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def supported(including_emulation: bool) -> bool:
        asked.append(including_emulation)
        return native

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.autograd.profiler.record_function("nothing"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert has_fast_bf16("cuda:0") == native
    assert asked == [False]
