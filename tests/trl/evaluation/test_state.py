"""An evaluation that is interrupted and repeated ends as one that never was."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tiny_models import Net, gradient_sign, images, noise
from trl.attacks import Misclassified, Undetected, build_attack, pgd
from trl.attacks.criterion import Criterion
from trl.attacks.ensemble import Ensemble
from trl.attacks.transfer import from_model
from trl.common.errors import TrlError
from trl.detectors import Detector, build_detector
from trl.evaluation import Evaluation, attack_all, evaluate
from trl.evaluation.state import IMAGES, RESULTS, Description, fingerprint
from trl.models import build_model
from trl.threat import L2, Linf

THREAT = Linf(0.2)


class Interrupted(Exception):
    pass


class Fuse:
    """`attack` until its call number `calls`."""

    def __init__(self, attack, calls: int) -> None:
        self.attack, self.left = attack, calls

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise Interrupted
        return self.attack(model, x, y)

    def __repr__(self) -> str:
        return "fuse"


def run(state: Path | None, calls: int = 1000, **changed) -> Evaluation:
    """9 batches under a fused attack: 3 for each of two attacks and for the ensemble's first part."""
    x, y = images()
    fuse = Fuse(noise(0.2), calls)
    attacks = {"noise": fuse, "more": fuse, "two": Ensemble({"noise": fuse, "sign": gradient_sign(0.2)})}
    # the search for signs asks no attack and leaves nothing in the state: `test_sigkill` has it
    given = {"attacks": attacks, "threat": THREAT, "batch_size": 20, "seed": 3, "checks": False, "key": "1", **changed}
    return evaluate(Net(), x, y, state=state, **given)


def assert_same(found: Evaluation, expected: Evaluation) -> None:
    for field in ("correct", "stages", "adversarials", "distances", "epsilon"):
        torch.testing.assert_close(getattr(found, field), getattr(expected, field), rtol=0, atol=0)
    counts = [{n: (c.forwards, c.backwards) for n, c in e.costs.items()} for e in (found, expected)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("calls", range(9))
def test_goes_on_after_an_interruption_anywhere(tmp_path: Path, calls: int) -> None:
    expected = run(None)
    with pytest.raises(Interrupted):
        run(tmp_path, calls)
    again = run(tmp_path, 9 - calls)  # only what was left fits
    assert_same(again, expected)
    assert_same(run(tmp_path, 0), expected)  # nothing is left


def test_every_unit_in_a_process_of_its_own(tmp_path: Path) -> None:
    for _ in range(8):
        with pytest.raises(Interrupted):
            run(tmp_path, 1)
    assert_same(run(tmp_path, 1), run(None))


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 4},
        {"batch_size": 21},
        {"threat": L2(1.0)},
        {"cumulative": True},
        {"attacks": {"noise": noise(0.1)}},
        {"key": "2"},
    ],
)
def test_another_evaluation_does_not_touch_it(tmp_path: Path, changed: dict) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, 5)
    other = run(tmp_path, **changed)
    assert_same(other, run(None, **changed))
    assert len(list(tmp_path.iterdir())) == 2
    assert_same(run(tmp_path, 4), run(None))


@pytest.mark.parametrize("name", [RESULTS, IMAGES])
@pytest.mark.parametrize("damage", ["truncated", "other bytes", "gone"])
def test_a_damaged_state_starts_anew(
    tmp_path: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, 5)
    (path,) = tmp_path.glob(f"*/{name}")
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"\0" * len(content))
    assert_same(run(tmp_path), run(None))
    if (name, damage) != (RESULTS, "gone"):
        assert "starting over" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrlError, match="cannot store the evaluation's state"):
        run(tmp_path / "file")


def test_fingerprint_knows_model_data_and_attacks() -> None:
    x, y = images()
    attack = partial(pgd, threat=THREAT, steps=3)

    def named(model: nn.Module, x: Tensor, y: Tensor, attacks: dict, *settings: object, key: str = "1") -> str:
        return fingerprint(model, x, y, attacks, *settings, key=key)

    same = named(Net(), x, y, {"a": attack}, THREAT)
    assert named(Net(), x.clone(), y, {"a": partial(pgd, steps=3, threat=Linf(0.2))}, THREAT) == same
    changed = x.clone()
    changed[-1, -1, -1, -1] ^= 1
    different = [
        named(Net(1), x, y, {"a": attack}, THREAT),
        named(Net(), changed, y, {"a": attack}, THREAT),
        named(Net(), x, y.flip(0), {"a": attack}, THREAT),
        named(Net(), x, y, {"b": attack}, THREAT),
        named(Net(), x, y, {"a": partial(pgd, threat=THREAT, steps=4)}, THREAT),
        named(Net(), x, y, {"a": attack}, dataclasses.replace(THREAT, epsilon=0.3)),
        named(Net(), x, y, {"a": attack}, THREAT, key="2"),
    ]
    assert len({same, *different}) == 1 + len(different)


def test_description_of_an_attack() -> None:
    described = Description().text(Ensemble({"a": partial(pgd, threat=THREAT, steps=3)}))
    assert described == (
        "trl.attacks.ensemble:Ensemble(parts={'a': trl.attacks.pgd:pgd(steps=3, threat="
        "trl.threat.threats:Linf(epsilon=0.2, region=None))}, criterion=trl.attacks.criterion:Misclassified())"
    )
    assert "0x" not in Description("1").text(partial(pgd, criterion=object()))


# --- what a state belongs to

IMAGES_OF = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def classifier(**options: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model("mlp", 3, (1, 4, 4), width=8, mean=(0.5,), std=(0.2,), **options).eval()


def named(model: nn.Module | None = None, attack: object = None, key: str | None = None, **settings: object) -> str:
    attacks = {"a": build_attack("pgd", THREAT) if attack is None else attack}
    model, y = classifier() if model is None else model, torch.zeros(6, dtype=torch.int64)
    return fingerprint(model, IMAGES_OF, y, attacks, *settings.values(), key=key)


def test_what_is_of_this_package_needs_no_key() -> None:
    same = named()
    assert named() == same
    attacks = [
        *(build_attack(name, THREAT) for name in ("apgd", "autoattack", "fgsm", "square", "fab_t", "cw_l2")),
        build_attack("autoattack", THREAT, version="rand"),
        build_attack("pgd", Linf(0.3)),
        build_attack("pgd", THREAT, steps=21),
        from_model(classifier(), build_attack("pgd", THREAT)),
        from_model(classifier(depth=3), build_attack("pgd", THREAT)),
    ]
    found = [same, *(named(attack=attack) for attack in attacks)]
    assert len(set(found)) == len(found)
    assert named(key="1") != same


def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return output + 1


def hooked(model: nn.Module) -> None:
    model.head.register_forward_hook(hook)


def pre_hooked(model: nn.Module) -> None:
    model.register_forward_pre_hook(lambda module, inputs: inputs[0] * 0)


def hooked_backwards(model: nn.Module) -> None:
    model.body.register_full_backward_hook(lambda module, given, taken: None)


def overridden(model: nn.Module) -> None:
    model.forward = lambda x: torch.zeros(len(x), 3)


def overridden_inside(model: nn.Module) -> None:
    model.head.forward = hook.__get__(model)


def parametrised(model: nn.Module) -> None:
    nn.utils.parametrize.register_parametrization(model.head, "weight", Doubled())


def of_another_class(model: nn.Module) -> None:
    model.__class__ = type("Mine", (type(model),), {})


def with_a_part_of_yours(model: nn.Module) -> None:
    model.body = nn.Sequential(model.body, Doubled())


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


CHANGES = (
    *(hooked, pre_hooked, hooked_backwards, overridden, overridden_inside),
    *(parametrised, of_another_class, with_a_part_of_yours),
)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_needs_a_key(change) -> None:
    model = classifier()
    change(model)
    with pytest.raises(TrlError, match=r"^the model needs a key .* or cannot be tracked; give key=") as error:
        named(model)
    assert "\n" not in str(error.value)
    assert named(model, key="1") != named(key="1")


def test_a_class_of_pytorch_that_was_changed_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x)
    with pytest.raises(TrlError, match="the model needs a key"):
        named()


def test_what_a_model_is_made_of_is_seen() -> None:
    models = [classifier() for _ in range(8)]
    models[1].normalise.mean.fill_(0.4)
    models[2].normalise.mean = torch.full((1, 1, 1), 0.3)
    models[3].head.bias.data[0] += 1
    models[4].temperature = 2.0
    models[5].body = nn.Sequential(*models[5].body, nn.ReLU())
    models[6].body[2] = nn.Identity()
    models[7].double()
    assert len({named(model) for model in models}) == len(models)


class Shifted(Net):
    def __init__(self, mean: float, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma
        self.register_buffer("mean", torch.tensor(mean), persistent=False)


def test_a_key_answers_for_code_alone() -> None:
    """Numbers and tensors of a model of yours are seen all the same."""
    models = [Shifted(mean, sigma) for mean in (0.0, 0.9) for sigma in (0.0, 1.0)]
    assert len({named(model, key="1") for model in models}) == 4
    assert named(models[0], key="1") == named(Shifted(0.0, 0.0), key="1") != named(models[0], key="2")


class Holding(Net):
    """Holds something of any kind."""

    def __init__(self, held) -> None:
        super().__init__()
        self.held = held


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: float) -> None:
        self.value = value

    def use(self) -> None: ...


def test_arrays_containers_slots_and_methods_of_yours_are_seen() -> None:
    held = [
        *(np.zeros(3), np.ones(3), np.ones(3, np.float32), [1, Stepping], [2, Stepping]),
        *(Slotted(1.0), Slotted(2.0), Slotted(1.0).use, Slotted(2.0).use, {"a": Slotted(3.0)}),
    ]
    assert len({named(Holding(thing), key="1") for thing in held}) == len(held)
    assert named(Holding(Slotted(1.0)), key="1") == named(Holding(Slotted(1.0)), key="1")
    whole = Slotted(1.0)
    whole.value = [whole]
    assert named(Holding(whole), key="1")


def test_the_options_of_a_criterion_of_yours_are_seen() -> None:
    found = {fingerprint(classifier(), *images(), {}, Surely(share), key="1") for share in (0.1, 0.2, 0.2)}
    assert len(found) == 2


def test_hooks_are_told_without_their_numbers() -> None:
    names = set()
    for _ in range(2):
        model = classifier()
        model.register_forward_hook(nn.Identity())
        names.add(named(model, key="1"))
    assert len(names) == 1


def in_place_of_pgd(model: nn.Module, x: Tensor, y: Tensor, steps: int = 1) -> Tensor:
    return x


class Stepping:
    def __init__(self, steps: int) -> None:
        self.steps, self.lock = steps, object()

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return x


@dataclasses.dataclass
class Shown(Stepping):
    steps: int


class Mine(Criterion):
    def loss(self, loss):
        return loss

    def met(self, outputs: Tensor, y: Tensor) -> Tensor:
        return outputs.argmax(1) == 0


class Surely(Mine):
    def __init__(self, share: float) -> None:
        self.share = share


class Score(Detector):
    def _learn(self, features: Tensor, labels: Tensor) -> None: ...

    def _score(self, features: Tensor) -> Tensor:
        return features[:, 0]


@pytest.mark.parametrize(
    "attack",
    [
        in_place_of_pgd,
        lambda model, x, y: x,
        noise(0.1),
        partial(in_place_of_pgd, steps=3),
        Fuse(noise(0.1), 3),
        Fuse(noise(0.1), 3).__call__,
        Ensemble({"part": build_attack("pgd", THREAT), "other": noise(0.1)}),
        from_model(Net(), build_attack("pgd", THREAT)),
        from_model(classifier(), noise(0.1)),
        build_attack("pgd", THREAT, Mine()),
        build_attack("pgd", THREAT, Misclassified() & Undetected(Score(), 0.5)),
    ],
)
def test_an_attack_of_yours_needs_a_key(attack) -> None:
    with pytest.raises(TrlError, match=r"^attack 'a' needs a key .* give key="):
        named(attack=attack)
    assert named(attack=attack, key="1") == named(attack=attack, key="1") != named(attack=attack, key="2")


def test_options_of_what_has_a_key_are_seen() -> None:
    attacks = [make(steps) for make in (partial(partial, in_place_of_pgd), Stepping, Shown) for steps in (1, 2)]
    assert len({named(attack=attack, key="1") for attack in attacks}) == 6
    assert named(attack=Fuse(noise(0.1), 1), key="1") == named(attack=Fuse(noise(0.1), 2), key="1")  # its repr says so


def test_criteria_and_detectors_with_their_options() -> None:
    energies = [build_detector("energy", temperature=temperature) for temperature in (1.0, 2.0)]
    criteria = [Misclassified(), *(Misclassified() & Undetected(energy, 0.5) for energy in energies)]
    found = {named(attack=build_attack("pgd", THREAT, criterion)) for criterion in criteria}
    assert len(found) == len({named(criterion=criterion) for criterion in criteria}) == 3
    with pytest.raises(TrlError, match=r"the evaluation needs a key .* \S+\.Mine is your own code"):
        named(criterion=Mine())


def test_code_and_versions_belong_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    same = named()
    with monkeypatch.context() as patch:
        patch.setattr("trl.evaluation.state.source_digest", lambda *modules: "changed")
        assert named() != same
    with monkeypatch.context() as patch:
        patch.setattr("trl.evaluation.state.versions", lambda: {"torch": "3.0"})
        assert named() != same
    monkeypatch.setattr(sys.modules["trl.attacks.pgd"], "pgd", in_place_of_pgd)
    with pytest.raises(TrlError, match=r"attack 'a' needs a key"):
        named(attack=partial(pgd, threat=THREAT))


def test_without_a_state_nothing_needs_a_key_and_perturb_is_alike(tmp_path: Path) -> None:
    x, y = images()
    expected = attack_all(Net(), x, y, noise(0.2), THREAT)
    with pytest.raises(TrlError, match="the model needs a key"):
        attack_all(Net(), x, y, noise(0.2), THREAT, state=tmp_path)
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):
        assert torch.equal(attack_all(Net(), x, y, noise(0.2), THREAT, state=tmp_path, key="1"), expected)


def test_what_is_returned_is_the_callers(tmp_path: Path) -> None:
    expected = run(None).adversarials
    run(tmp_path).adversarials.zero_()
    assert torch.equal(run(tmp_path, 0).adversarials, expected)


def test_names_that_a_file_reserves(tmp_path: Path) -> None:
    attacks = {"__metadata__": noise(0.2)}
    assert_same(run(tmp_path, attacks=attacks), run(None, attacks=attacks))
    assert_same(run(tmp_path, attacks=attacks), run(None, attacks=attacks))


# --- killed

KILLED = """
import sys
from functools import partial
from tests.trl.evaluation.test_state import survive
survive(sys.argv[1])
"""


def survive(folder: str | None) -> Evaluation:
    """Long enough to be killed in its middle."""
    x, y = images(100)
    attack = partial(pgd, threat=THREAT, steps=40, restarts=2, loss="dlr")
    return evaluate(Net(), x, y, {"both": Ensemble({"a": attack, "b": attack})}, THREAT, 4, state=folder, key="1")


def test_sigkill(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], env=environment)
    while not list(tmp_path.glob(f"*/{RESULTS}")):
        assert process.poll() is None
        time.sleep(0.01)  # leaves the processor to it
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert_same(survive(str(tmp_path)), survive(None))
