import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.paths import RecipePaths
from tasks.prepare import prepare
from tasks.stage import Stage, run_stage
from trl.common.errors import TrlError
from trl.nn.device import choose_device

PARAMS = Path(__file__).parents[2] / "params.yaml"


def test_paths_are_those_of_dvc_yaml() -> None:
    paths = RecipePaths("digits")
    graph = (PARAMS.parent / "dvc.yaml").read_text().replace("${item.recipe}", "digits")
    graph = graph.replace("${item.method}", "tla").replace("${item.seed}", "3")
    model = paths.model("tla", 3)
    for path in (paths.data, paths.metrics, paths.report, model.model, model.adversarials, model.metrics):
        assert str(path) in graph


def test_a_device_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_DEVICE", "cuda:9")
    with pytest.raises(TrlError, match="TRL_DEVICE=cuda:9 cannot be used: "):
        choose_device()
    monkeypatch.setenv("TRL_DEVICE", "cpu")
    assert choose_device() == "cpu"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text(PARAMS.read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_stage_runs_the_chosen_recipe(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_stage(prepare, per_model=False, arguments=["--recipe", "digits"]) == 0
    assert "1197 training, 150 validation, 450 test images of 1x8x8" in capsys.readouterr().out
    assert {p.name for p in (workplace / "outputs/digits/data").iterdir()} == {"data.safetensors", "data.json"}


def test_errors_are_one_line_on_stderr_and_a_status(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(stage: Stage) -> None:
        raise AssertionError("must not run")

    for arguments, message in (
        (["--recipe", "svhn"], "unknown recipe 'svhn'; params.yaml has digits"),
        (["--method", "none"], "unknown method 'none'; recipes.digits.methods has um"),
    ):
        assert run_stage(refused, per_model="--method" in arguments, arguments=arguments) == 1
        assert capsys.readouterr().err.startswith(f"error: {message}")


def test_broken_raw_files_end_the_stage(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, raw_data: Path
) -> None:
    for case, message in (("missing", "mnist"), ("truncated", "truncated"), ("changed", "SHA-256|damaged")):
        folder = workplace / case / "mnist"
        monkeypatch.setenv("TRL_RAW_DATA", str(workplace / case))
        if case != "missing":
            folder.mkdir(parents=True)
            for file in (raw_data / "mnist").iterdir():
                (folder / file.name).write_bytes(file.read_bytes())
            labels = folder / "t10k-labels-idx1-ubyte.gz"
            content = labels.read_bytes()
            middle = len(content) // 2
            changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            labels.write_bytes(content[:middle] if case == "truncated" else changed)
        assert run_stage(prepare, per_model=False, arguments=["--recipe", "mnist_cpu"]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert any(word in error for word in message.split("|")), error
        assert not (workplace / "outputs").exists()


def write_below_a_file(stage: Stage) -> None:
    """Write where no system lets anybody write."""
    Path("params.yaml", "below").mkdir()


def write_too_much(stage: Stage) -> None:
    """Write, as to a full disk, what a library of ours would not report as a TrlError."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        Path("large").write_bytes(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    ("work", "said"), [(write_below_a_file, "params.yaml/below: Not a directory"), (write_too_much, "File too large")]
)
def test_what_the_system_refuses_is_one_line(
    workplace: Path, capsys: pytest.CaptureFixture[str], work: Callable[[Stage], None], said: str
) -> None:
    assert run_stage(work, per_model=False, arguments=[], as_written=True) == 1
    remedy = "free space or check permissions, then repeat the command"
    assert capsys.readouterr().err == f"error: {said}: {remedy}\n"
