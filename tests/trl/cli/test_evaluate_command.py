"""The command: its figures are those of `evaluate`, its JSON is complete, its errors are one line."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import trl.attacks
import trl.evaluation
from trl.attacks import build_attack
from trl.attacks.ensemble import Ensemble
from trl.cli.command import sha256
from trl.cli.evaluate import main
from trl.data import load_dataset
from trl.evaluation import evaluate
from trl.models import Classifier, build_model, load_model, save_model
from trl.threat import Linf

ROOT = Path(__file__).parents[3]
ATTACKS = ["--attack", "fgsm", "--attack", "pgd:steps=5,step_size=1/20"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model, data = build_model("mlp", 10, (1, 8, 8), width=32), load_dataset("digits").train
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.images / 255), data.labels).backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("digits")
    save_model(model, folder)
    return folder


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRL_DEVICE", "cpu")
    return tmp_path


def test_the_figures_are_those_of_evaluate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--epsilon", "1/10", "--samples", "120", "--batch-size", "50", "--seed", "3"]
    written = ["--out", "new/result.json", "--save-adversarials", "worst.safetensors"]
    assert main(["--model", str(folder), "--data", "digits", *options, *ATTACKS, *written]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    result = json.loads(Path("new/result.json").read_text())

    threat, test = Linf(0.1), load_dataset("digits").test
    attacks = {
        "fgsm": build_attack("fgsm", threat),
        "pgd": build_attack("pgd", threat, steps=5, step_size=0.05),
    }
    expected = evaluate(load_model(folder), test.images[:120], test.labels[:120], attacks, threat, 50, 3)
    summary = expected.summary()
    assert {key: result[key] for key in ("clean", "robust")} == {key: summary[key] for key in ("clean", "robust")}
    assert 0.2 < result["robust"]["worst"]["accuracy"] < result["clean"]["accuracy"] - 0.1
    for name, figures in summary["cost"].items():
        assert figures.items() <= result["cost"][name].items()
        assert result["cost"][name]["seconds"] > 0
    for name, figures in {"clean": summary["clean"], **summary["robust"]}.items():
        shown = f"{100 * figures['accuracy']:.2f}  {100 * figures['low']:6.2f}–{100 * figures['high']:5.2f}"
        assert any(line.startswith(name) and shown in line for line in err.splitlines())

    assert result["model"]["source"] == str(folder)
    assert result["model"]["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert result["data"].items() >= {"source": "digits", "samples": 120}.items()
    assert result["threat"] == {"norm": "linf", "epsilon": 0.1}
    assert (result["seed"], result["batch_size"], result["device"], result["warnings"]) == (3, 50, "cpu", [])
    assert result["attacks"]["fgsm"] == {"attack": "fgsm"}
    assert result["attacks"]["pgd"].items() >= {"attack": "pgd", "steps": 5, "step_size": 0.05, "restarts": 1}.items()
    assert list(result["versions"]) == ["python", "tla-robustness", "torch", "numpy"]
    assert all(result["versions"].values())
    assert list(result) == [
        *("model", "data", "threat", "attacks", "eight_bit", "batch_size", "seed", "versions", "device", "date"),
        *("clean", "robust", "stages", "cost", "warnings"),
    ]

    stored = load_file("worst.safetensors")
    assert torch.equal(stored["images"], expected.adversarials)
    assert torch.equal(stored["correct.pgd"], expected.correct["pgd"])
    # the worst case is what a model sees in them, so that they tell how well they transfer to another
    again = ["--model", str(folder), "--data", "worst.safetensors", "--epsilon", "0", "--attack", "fgsm"]
    assert main(again) == 0
    assert json.loads(capsys.readouterr().out)["clean"] == result["robust"]["worst"]


def test_a_region(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--model", str(folder), "--data", "digits", "--samples", "60", "--epsilon", "0.3", "--attack", "fgsm"]
    written = ["--region", "background:threshold=0.2", "--save-adversarials", "local.safetensors"]
    assert main([*given, *written]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["threat"]["region"] == {"name": "background", "threshold": 0.2}
    assert "linf, epsilon 0.3, inside background:threshold=0.2; percent" in err
    x = load_dataset("digits").test.images[:60] / 255
    change = load_file("local.safetensors")["images"] - x
    assert change.any()
    assert not change[x >= 0.2].any()


def test_the_same_attack_with_two_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = ["--attack", "pgd:steps=1", "--attack", "pgd:steps=3", "--attack", "fgsm"]
    assert main(["--model", str(folder), "--data", "digits", "--samples", "30", "--epsilon", "0.1", *twice]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["robust"]) == ["pgd:steps=1", "pgd:steps=3", "fgsm", "worst"]
    assert result["attacks"]["pgd:steps=3"]["steps"] == 3


def test_the_parts_of_an_ensemble_are_shown(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"fast": build_attack("fgsm", Linf(0.1)), "slow": build_attack("pgd", Linf(0.1), steps=3)}
    monkeypatch.setattr(trl.attacks, "build_attack", lambda *_, **__: Ensemble(parts))
    one = ["--attack", "fgsm"]
    assert main(["--model", str(folder), "--data", "digits", "--samples", "60", "--epsilon", "0.1", *one]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert list(result["stages"]["fgsm"]) == ["fast", "slow"]
    assert result["stages"]["fgsm"]["slow"] == result["robust"]["fgsm"]
    assert list(result["cost"]) == ["fgsm/fast", "fgsm/slow"]
    lines = [line.split()[0] for line in err.splitlines() if "–" in line]
    assert lines == ["clean", "fast", "slow", "fgsm", "worst"]


def test_another_process_says_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And its standard output is JSON alone, whatever the user's module prints."""
    code = f"from trl.models import load_model\nprint('hello')\ndef make():\n    return load_model({str(folder)!r})\n"
    Path("user_model.py").write_text(code)
    rest = ["--data", "digits", "--samples", "40", "--epsilon", "0.1", *ATTACKS]
    done = subprocess.run(
        [sys.executable, "-m", "trl.cli.evaluate", "--model", "user_model:make", *rest],
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRL_DEVICE": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    other = json.loads(done.stdout)
    assert "hello" in done.stderr
    assert main(["--model", str(folder), *rest]) == 0
    mine = json.loads(capsys.readouterr().out)
    assert other["model"]["sha256"] == mine["model"]["sha256"]
    assert all(other[key] == mine[key] for key in ("clean", "robust", "data", "attacks"))


class Odd(nn.Linear):
    """Its state holds an object without a value, and a sparse tensor."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        nn.init.ones_(self.weight)
        nn.init.ones_(self.bias)
        self.register_buffer("graph", torch.eye(2).to_sparse())
        self.owner = object()

    def get_extra_state(self) -> object:
        return self.owner


def test_the_hash_of_a_model_is_of_its_values() -> None:
    one, other = Odd(), Odd()
    found = sha256(one.state_dict())
    assert sha256(other.state_dict()) == found
    other.graph = 2 * other.graph
    assert sha256(other.state_dict()) != found


def test_help_does_not_load_pytorch() -> None:
    code = (
        "import sys, trl.cli.evaluate as r\ntry: r.main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--save-adversarials" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_list_names_what_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--list"])
    out = capsys.readouterr().out
    assert "  pgd  steps=20, step_size=None" in out
    assert "  wrn_*  leak=0.1" in out
    assert "  cifar10\n" in out
    assert "  image_folder  path=…, size=…" in out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--model": "nowhere"}, "no model 'nowhere'; give a folder"),
        (
            {"--model": "torch.nn:Flatten"},
            "the model has 64 classes, but digits has 10; give the data that it was trained on",
        ),
        ({"--model": "torch.nn:Conv2d"}, "torch.nn:Conv2d: TypeError: "),
        (
            {"--model": f"{__name__}:grey"},
            "the model fails on images [2, 1, 8, 8]: Runtime",
        ),
        ({"--data": "cifar"}, "unknown data set 'cifar'; known: cifar10, digits"),
        (
            {"--data": "wide.safetensors"},
            "the model fails on images [2, 1, 8, 9]: the model takes float images [n, 1, 8, 8]",
        ),
        ({"--data": "classes.safetensors"}, "labels range from 0 to 10, but the model has 10 classes"),
        ({"--data": "bright.safetensors"}, "pixels lie in ["),
        ({"--data": "shifted.safetensors"}, "images [4, 1, 8, 8] with labels [3]: give"),
        ({"--attack": "pdg"}, "unknown attack 'pdg'; known: "),
        ({"--attack": "pgd:stepz=3"}, "attack pgd: stepz: unknown key; allowed: steps, step_size"),
        ({"--attack": "pgd:threat=3"}, "attack pgd: threat: unknown key"),
        ({"--attack": "pgd:steps=0"}, "attack pgd: steps: should be greater than or equal to 1, not 0"),
        ({"--attack": "pgd:steps"}, "cannot parse 'pgd:steps'; write NAME"),
        ({"--norm": "l7"}, "unknown norm 'l7'; known: linf"),
        ({"--region": "sky"}, "unknown region 'sky'; known: background, border"),
        ({"--region": "border:width=0"}, "region border: width: should be greater than or equal to 1, not 0"),
        ({"--region": "mask:path=few.npz"}, "few.npz: holds no mask for some of the images"),
        ({"--epsilon": "8/0"}, "--epsilon 8/0: give a number of at least 0, such as 8/255"),
        ({"--epsilon": "-1"}, "--epsilon -1: give a number"),
        ({"--samples": "0"}, "--samples 0: give at least 1"),
        ({"--batch-size": "0"}, "batch_size is 0: give at least 1"),
        ({"--device": "cuda:99"}, "device cuda:99 cannot be used"),
        ({"--out": "."}, ".: cannot be written"),
        ({"--save-adversarials": "wide.safetensors/a"}, "wide.safetensors/a: cannot be written"),
    ],
)
def test_errors_are_one_line(
    changed: dict[str, str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    save_file({"images": torch.rand(4, 1, 8, 9), "labels": y}, "wide.safetensors")
    save_file({"images": x, "labels": torch.tensor([0, 1, 2, 10])}, "classes.safetensors")
    numpy.savez("few.npz", images=x.numpy(), masks=(x > 0.5).numpy())
    save_file({"images": 255 * x, "labels": y}, "bright.safetensors")
    save_file({"images": x, "labels": y[:3]}, "shifted.safetensors")
    usual = {"--model": str(folder), "--data": "digits", "--epsilon": "0.1", "--attack": "fgsm", "--samples": "4"}
    arguments = [f"{key}={value}" for key, value in {**usual, **changed}.items()]
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}"), err
    assert err.count("\n") == 1


def grey() -> nn.Module:
    return nn.Conv2d(3, 1, 3)


@pytest.mark.parametrize("state", [[], ["--state", "kept"]])
def test_interrupted(
    state: list[str], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trl.evaluation, "evaluate", stopped)
    arguments = ["--model", str(folder), "--data", "digits", "--epsilon", "0.1", "--attack", "fgsm", *state]
    assert main(arguments) == 130
    said = capsys.readouterr().err
    how = "to resume" if state else "nothing is saved without --state FOLDER; to start over"
    assert said == f"interrupted; {how}: python -m trl.cli.evaluate {' '.join(arguments)}\n"


def test_a_state_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second command finds all attacks done: it only looks for signs and judges the stored images again."""
    arguments = ["--model", str(folder), "--data", "digits", "--epsilon", "0.1", *ATTACKS, "--state", "kept"]
    seen: list[int] = []
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, _: seen.append(len(inputs[0])) if isinstance(module, Classifier) else None
    )
    results, asked = [], []
    for _ in range(2):
        seen.clear()
        assert main(arguments) == 0
        results.append(json.loads(capsys.readouterr().out))
        asked.append(sum(seen))
    hook.remove()
    attacked = sum(cost["forwards"] for cost in results[0]["cost"].values())
    assert attacked > 0
    assert asked[0] - asked[1] > attacked
    assert all(results[0][key] == results[1][key] for key in ("clean", "robust", "cost"))


FACTORY = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.flat, self.head = nn.Flatten(), nn.Linear(64, 10)
    def forward(self, x):
        return {answer}
def make():
    return Net()
"""


IN_TURN = """
import sys
from trl.cli.evaluate import main
end = sys.argv.index("--")
for source in sys.argv[1:end]:
    assert main(["--model", source, "--out", f"{source}.json", *sys.argv[end + 1:]]) == 0
"""


def test_a_state_is_not_taken_for_that_of_an_edited_factory(folder: Path) -> None:
    """Also where the class is in another file than the function, and for weights in a folder."""
    arguments = ["--data", "digits", "--samples", "60", "--epsilon", "0.1", "--attack", "fgsm", "--state", "kept"]

    def clean(*sources: str) -> list[float]:
        """All by one new process."""
        subprocess.run(
            [sys.executable, "-c", IN_TURN, *sources, "--", *arguments],
            env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRL_DEVICE": "cpu", "PYTHONDONTWRITEBYTECODE": "1"},
            check=True,
        )
        return [json.loads(Path(f"{source}.json").read_text())["clean"]["accuracy"] for source in sources]

    Path("indirect.py").write_text("from mine import make\n")
    found = {}
    for answer in ("self.head(self.flat(x))", "-self.head(self.flat(x))"):
        Path("mine.py").write_text(FACTORY.format(answer=answer))
        found[answer] = clean("mine:make", "indirect:make", "mine:Net")
    first, second = found.values()
    assert len(set(first)) == len(set(second)) == 1
    assert first != second
    states = set(Path("kept").iterdir())
    assert len(states) == 4  # `mine:make` and `mine:Net` are of the same files
    assert main(["--model", str(folder), *arguments]) == 0
    assert len(set(Path("kept").iterdir()) - states) == 1


def test_the_images_of_a_model_that_answers_at_random_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    Path("noisy.py").write_text(FACTORY.format(answer="self.head(self.flat(x + torch.randn_like(x)))"))
    written = ["--attack", "fgsm", "--save-adversarials", "images.safetensors"]
    assert main(["--model", "noisy:make", "--data", "digits", "--samples", "60", "--epsilon", "0.1", *written]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    with safe_open("images.safetensors", "pt") as file:
        said = file.metadata()
    assert set(said) == {"random", "unsteady"}
    assert f"unsteady: {said['unsteady']}" in warnings
    assert "not the worst case" in said["unsteady"]
