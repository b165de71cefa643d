import pytest

from tasks.processes import device_of
from trl.common.errors import TrlError


@pytest.mark.parametrize("wanted", ["", "cuda"])
def test_each_process_has_a_gpu_of_its_own(wanted: str) -> None:
    assert [device_of(rank, wanted, 2) for rank in (0, 1)] == ["cuda:0", "cuda:1"]


def test_without_gpus_all_processes_are_on_the_cpu() -> None:
    assert device_of(1, "", 0) == "cpu"
    assert device_of(1, "cpu", 2) == "cpu"


@pytest.mark.parametrize(
    ("rank", "wanted", "gpus", "message"),
    [
        (0, "cuda:1", 2, "TRL_DEVICE=cuda:1: is one device, which several processes cannot share; set TRL_DEVICE=cuda"),
        (2, "", 2, "process 3 has no GPU of its own: there are 2; lower TRL_PROCESSES"),
        (0, "cuda", 0, "process 1 has no GPU of its own: there are 0"),
    ],
)
def test_no_two_processes_share_a_gpu(rank: int, wanted: str, gpus: int, message: str) -> None:
    with pytest.raises(TrlError) as caught:
        device_of(rank, wanted, gpus)
    assert str(caught.value).startswith(message)
