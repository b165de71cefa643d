"""A command imports what it needs and nothing else: PyTorch, MLflow and the others take seconds each."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.record import record
from tasks.stage import run_stage
from tests.helpers.synthetic_results import write_model

ROOT = Path(__file__).parents[2]
STAGES = ("prepare", "train", "attack", "detect", "ensemble", "report", "record", "deploy", "export")
LIBRARIES = ("torch", "torchvision", "mlflow", "matplotlib", "prefect", "dvc", "sklearn", "scipy", "pandas")
PROBE = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv.pop(0)
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    print(f"\\nimported: {{','.join(name for name in {libraries} if name in sys.modules)}}")
"""


def imported(folder: Path, *command: str) -> set[str]:
    """Those of LIBRARIES that `python -m COMMAND` imports; it must succeed, without a warning."""
    probe = [sys.executable, "-c", PROBE.format(libraries=LIBRARIES), str(ROOT), *command]
    done = subprocess.run(probe, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stdout
    return set(done.stdout.rpartition("imported: ")[2].strip().split(",")) - {""}


@pytest.mark.parametrize("module", [*(f"tasks.{stage}" for stage in STAGES), "flows.full", "flows.services"])
def test_help_is_quick(module: str, tmp_path: Path) -> None:
    assert imported(tmp_path, module, "--help") == set()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose one model is in MLflow."""
    folder = tmp_path_factory.mktemp("recorded")
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    params |= {"methods": ["tla"], "recipes": {"digits": params["recipes"]["digits"]}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    write_model(folder / "metrics/digits/tla-0", "tla", 0)
    (folder / "outputs/digits/data").mkdir(parents=True)
    (folder / "outputs/digits/data/data.json").write_text(json.dumps({"sha256": "0" * 64}))
    (folder / "outputs/digits/report").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr("trl.report.save_figures", lambda results, folder: [])  # they take seconds
        assert run_stage(record, per_model=False, arguments=[], as_written=True) == 0
    return folder


@pytest.mark.parametrize(
    ("module", "needed"),
    [
        ("tasks.record", {"mlflow", "pandas", "scipy"}),
        ("tasks.report", {"matplotlib"}),
    ],
)
def test_what_only_shows_and_records_needs_no_pytorch(
    recorded: Path, module: str, needed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's own imports are pandas and SciPy."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert imported(recorded, module) <= needed
