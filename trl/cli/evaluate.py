"""Measure the robust accuracy of a model. Prints JSON on standard output, a table and progress on standard error.

    python -m trl.cli.evaluate --model MODEL --data DATA --epsilon 8/255

Exit status: 0 on success; 1 after a line `error: …`; 2 for invalid arguments; 130 when interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl.cli.command import add_common, add_sources, check_writable, circumstances, open_both, out_of_memory, run
from trl.common.errors import TrlError

if TYPE_CHECKING:  # load PyTorch only after parsing the arguments
    from trl.attacks import Attack
    from trl.threat import Threat

COMMAND = "python -m trl.cli.evaluate"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, evaluate and write the result; returns the exit status."""
    return run(COMMAND, _parser(), robustness, table, arguments)


def robustness(given: argparse.Namespace) -> dict[str, Any]:
    """Evaluate as the arguments say; returns the result ready for JSON. TrlError for invalid arguments."""
    from dataclasses import asdict

    import torch
    from safetensors.torch import save

    from trl.cli.sources import model_key
    from trl.common.files import write_atomic
    from trl.evaluation import evaluate
    from trl.nn.device import choose_device

    check_writable(given.save_adversarials)
    threat, allowed, attacks, options = _attacks(given)
    device = choose_device(given.device)
    (model, x, y), facts, warnings = open_both(given, device, given.samples)
    key = model_key(given.model, model) if given.state else None
    try:
        found = evaluate(
            *(model, x, y, attacks, threat, given.batch_size, given.seed),
            precision=given.precision,
            eight_bit=given.eight_bit,
            state=given.state,
            key=key,
        )
    except torch.OutOfMemoryError:
        raise out_of_memory(device, given.batch_size) from None
    if given.save_adversarials:
        correct = {f"correct.{name}": flags for name, flags in found.correct.items()}
        stored = {"images": found.adversarials, "labels": y.to(torch.int64).contiguous(), **correct}
        write_atomic(given.save_adversarials, save(stored, found.caveats))
    summary = found.summary()
    return {
        **facts,
        "threat": allowed,
        "attacks": options,
        "eight_bit": given.eight_bit,
        "batch_size": given.batch_size,
        "seed": given.seed,
        **circumstances(device),
        "clean": summary["clean"],
        "robust": summary["robust"],
        "stages": summary.get("stages", {}),
        "cost": {name: asdict(cost) for name, cost in found.costs.items()},
        "warnings": [*warnings, *summary.get("warnings", [])],
    }


def table(result: dict[str, Any]) -> str:
    """The figures as a table: a line for clean images, each attack, its parts, and the worst case."""
    from trl.report.table import show_epsilon
    from trl.spec import describe_spec

    def line(name: str, figures: dict[str, float], cost: dict[str, float] | None = None) -> str:
        accuracy = f"{100 * figures['accuracy']:8.2f}  {100 * figures['low']:6.2f}–{100 * figures['high']:5.2f}"
        shown = f"{cost['forwards']:12,}{cost['backwards']:12,}{cost['seconds']:9.1f}" if cost else ""
        return f"{name:<{width}}{accuracy}{shown}"

    threat, costs = result["threat"], result["cost"]
    inside = f", inside {describe_spec(threat['region'])}" if "region" in threat else ""
    width = 2 + max(map(len, ["  apgd_dlr", *result["robust"]]))
    lines = [
        f"model   {result['model']['source']} ({result['model']['sha256'][:12]})",
        f"data    {result['data']['source']}, {result['data']['samples']:,} images",
        f"threat  {threat['norm']}, epsilon {show_epsilon(threat['epsilon'])}{inside}; percent, with 95 % intervals",
        "",
        f"{'':<{width}}accuracy       interval    forwards   backwards  seconds",
        line("clean", result["clean"]),
    ]
    for name, figures in result["robust"].items():
        parts = result["stages"].get(name, {})
        lines += [line(f"  {part}", parts[part], costs.get(f"{name}/{part}")) for part in parts]
        lines.append(line(name, figures, costs.get(name)))
    return "\n".join([*lines, *(f"warning: {warning}" for warning in result["warnings"])])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_sources(parser)
    add("--samples", type=int, metavar="N", help="use only the first N images (default: all)")
    add("--norm", default="linf", help="norm of the threat (default linf)")
    add("--epsilon", required=True, help="largest perturbation of images in [0, 1], such as 8/255")
    add(
        "--region",
        metavar="NAME[:OPTIONS]",
        help="where images may change, such as background:threshold=0.1 or border:width=2 (default: everywhere)",
    )
    add(
        "--attack",
        action="append",
        metavar="NAME[:OPTIONS]",
        help="such as pgd:steps=50,step_size=2/255; may be repeated (default autoattack)",
    )
    add("--batch-size", type=int, default=500, metavar="N", help="batch size (default 500)")
    add(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="bf16 lets gradient attacks search in bf16 where that is faster; verdicts are always in fp32",
    )
    add(
        "--eight-bit",
        action="store_true",
        help="round adversarial images to 256 levels first, as storing them as PNG would",
    )
    add("--seed", type=int, default=0, help="seed of the attacks (default 0)")
    add(
        "--save-adversarials",
        type=Path,
        metavar="FILE.safetensors",
        help="write every image there as attacked, with its label, in a format that --data reads; the worst case, "
        "unless a warning says that the model's outputs are random",
    )
    add_common(parser)
    return parser


def _attacks(given: argparse.Namespace) -> "tuple[Threat, dict[str, Any], dict[str, Attack], dict[str, Any]]":
    """The threat with its description for the JSON, and the attacks by label with theirs."""
    from pydantic import TypeAdapter, ValidationError

    from trl.attacks import ATTACKS, build_attack
    from trl.cli.sources import parse_choice
    from trl.common.numbers import NonNegative
    from trl.regions import REGIONS
    from trl.threat import build_threat

    try:
        epsilon: float = TypeAdapter(NonNegative).validate_python(given.epsilon)
    except ValidationError:
        raise TrlError(f"--epsilon {given.epsilon}: give a number of at least 0, such as 8/255") from None
    if given.samples is not None and given.samples < 1:
        raise TrlError(f"--samples {given.samples}: give at least 1")
    allowed: dict[str, Any] = {"norm": given.norm, "epsilon": epsilon}
    if given.region:
        region, settings = parse_choice(given.region)
        allowed["region"] = {"name": region, **REGIONS.check(region, settings)}
    threat = build_threat(**allowed)
    texts = given.attack or ["autoattack"]
    choices = [parse_choice(text) for text in texts]
    names = [name for name, _ in choices]
    attacks, described = {}, {}
    for text, (name, options) in zip(texts, choices, strict=True):
        label = name if names.count(name) == 1 else text
        if label in attacks:
            raise TrlError(f"--attack {text}: given twice")
        checked = ATTACKS.check(name, options)
        attacks[label] = build_attack(name, threat, **options)
        described[label] = {"attack": name, **checked}
    return threat, allowed, attacks, described


if __name__ == "__main__":
    sys.exit(main())
