"""Measure the robust accuracy of a model. Prints JSON on standard output, a table and progress on standard error.

    python -m trl.cli.evaluate --model MODEL --data DATA --epsilon 8/255

Exit status: 0 on success; 1 after a line `error: …`; 2 for invalid arguments; 130 when interrupted.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl.common.errors import TrlError, in_one_line, origin

if TYPE_CHECKING:  # load PyTorch only after parsing the arguments
    from trl.attacks import Attack
    from trl.threat import Threat

COMMAND = "python -m trl.cli.evaluate"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, evaluate and write the result; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    given = _parser().parse_args(arguments)
    try:
        _check_writable(given.out, given.save_adversarials)
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for JSON only
            result = robustness(given)
            print(f"\n{table(result)}")
        if given.out is None:
            print(json.dumps(result, indent=2, allow_nan=False))
        else:
            from trl.common.files import write_json

            write_json(given.out, result)
    except Exception as error:  # ours, or from the user's model
        if given.debug:
            raise
        where = "" if isinstance(error, TrlError) else f" ({origin(error)}); --debug shows the traceback"
        print(f"error: {in_one_line(error)}{where}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = f"{COMMAND} {shlex.join(arguments)}"
        how = "to resume" if given.state else "nothing is saved without --state FOLDER; to start over"
        print(f"interrupted; {how}: {again}", file=sys.stderr)
        return 130
    return 0


def robustness(given: argparse.Namespace) -> dict[str, Any]:
    """Evaluate as the arguments say; returns the result ready for JSON. TrlError for invalid arguments."""
    from dataclasses import asdict

    import torch
    from safetensors.torch import save

    from trl.cli.sources import model_key, open_images, open_model
    from trl.common.files import write_atomic
    from trl.evaluation import evaluate
    from trl.nn.device import choose_device
    from trl.nn.inference import try_out

    threat, attacks, options = _attacks(given)
    device = choose_device(given.device)
    x, y, classes = open_images(given.data, given.samples)
    model, warnings = open_model(given.model, given.architecture, tuple(x.shape[1:]))
    known = try_out(model.to(device), x).shape[1]
    if classes and classes != known:
        raise TrlError(
            f"the model has {known} classes, but {given.data} has {classes}; give the data that it was trained on"
        )
    facts = {
        "source": given.model,
        "sha256": _sha256(model.state_dict()),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
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
        raise TrlError(
            f"{device} runs out of memory with batches of {given.batch_size} images; lower --batch-size"
        ) from None
    if given.save_adversarials:
        correct = {f"correct.{name}": flags for name, flags in found.correct.items()}
        stored = {"images": found.adversarials, "labels": y.to(torch.int64).contiguous(), **correct}
        write_atomic(given.save_adversarials, save(stored, found.caveats))
    summary = found.summary()
    return {
        "model": facts,
        "data": {"source": given.data, "samples": len(x), "sha256": _sha256({"images": x, "labels": y})},
        "threat": {"norm": threat.name, "epsilon": threat.epsilon},
        "attacks": options,
        "eight_bit": given.eight_bit,
        "batch_size": given.batch_size,
        "seed": given.seed,
        **_circumstances(device),
        "clean": summary["clean"],
        "robust": summary["robust"],
        "stages": summary.get("stages", {}),
        "cost": {name: asdict(cost) for name, cost in found.costs.items()},
        "warnings": [*warnings, *summary.get("warnings", [])],
    }


def table(result: dict[str, Any]) -> str:
    """The figures as a table: a line for clean images, each attack, its parts, and the worst case."""
    from trl.report.table import show_epsilon

    def line(name: str, figures: dict[str, float], cost: dict[str, float] | None = None) -> str:
        accuracy = f"{100 * figures['accuracy']:8.2f}  {100 * figures['low']:6.2f}–{100 * figures['high']:5.2f}"
        shown = f"{cost['forwards']:12,}{cost['backwards']:12,}{cost['seconds']:9.1f}" if cost else ""
        return f"{name:<{width}}{accuracy}{shown}"

    threat, costs = result["threat"], result["cost"]
    width = 2 + max(map(len, ["  apgd_dlr", *result["robust"]]))
    lines = [
        f"model   {result['model']['source']} ({result['model']['sha256'][:12]})",
        f"data    {result['data']['source']}, {result['data']['samples']:,} images",
        f"threat  {threat['norm']}, epsilon {show_epsilon(threat['epsilon'])}; percent, with 95 % intervals",
        "",
        f"{'':<{width}}accuracy       interval    forwards   backwards  seconds",
        line("clean", result["clean"]),
    ]
    for name, figures in result["robust"].items():
        parts = result["stages"].get(name, {})
        lines += [line(f"  {part}", parts[part], costs.get(f"{name}/{part}")) for part in parts]
        lines.append(line(name, figures, costs.get(name)))
    return "\n".join([*lines, *(f"warning: {warning}" for warning in result["warnings"])])


class _List(argparse.Action):
    """`--list`: all names with options and defaults; not part of --help, because it loads PyTorch."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from trl.attacks import ATTACKS
        from trl.data import DATASETS
        from trl.models import MODELS

        for heading, registry in (("attacks", ATTACKS), ("architectures", MODELS), ("data sets", DATASETS)):
            print(f"{heading}:")
            for name in registry.names():
                fields = registry.options(name.replace("*", "28_10")).model_fields
                shown = (f"{key}={'…' if f.is_required() else f.default}" for key, f in fields.items())
                print(f"  {name}  {', '.join(shown)}".rstrip())
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--list", action=_List, nargs=0, help="print the attacks, architectures and data sets with their options")
    add(
        "--model",
        required=True,
        help="a folder with model.safetensors and config.json; a weights file (.safetensors, .pt, .pth, .ckpt, …); or "
        "package.module:function, which returns a torch.nn.Module that maps [0, 1] images to logits",
    )
    add("--architecture", metavar="NAME[:OPTIONS]", help="the architecture of a weights file, such as wrn_34_10")
    add("--data", required=True, help="the name of a data set (its test images), with options as for --attack, or a "
        ".safetensors or .npz file with images [n, c, h, w] (uint8, or float in [0, 1]) and labels [n]")  # fmt: skip
    add("--samples", type=int, metavar="N", help="use only the first N images (default: all)")
    add("--norm", default="linf", help="norm of the threat (default linf)")
    add("--epsilon", required=True, help="largest perturbation of images in [0, 1], such as 8/255")
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
    add("--device", help="cpu, cuda, cuda:1, … (default: TRL_DEVICE, or the GPU if there is one)")
    add("--state", type=Path, metavar="FOLDER", help="save progress there, so that the same command can resume")
    add("--out", type=Path, metavar="FILE", help="write the JSON there instead of to standard output")
    add(
        "--save-adversarials",
        type=Path,
        metavar="FILE.safetensors",
        help="write every image there as attacked, with its label, in a format that --data reads; the worst case, "
        "unless a warning says that the model's outputs are random",
    )
    add("--debug", action="store_true", help="show the full traceback of an error")
    return parser


def _attacks(given: argparse.Namespace) -> "tuple[Threat, dict[str, Attack], dict[str, Any]]":
    """The threat, the attacks by label, and their description for the JSON."""
    from pydantic import TypeAdapter, ValidationError

    from trl.attacks import ATTACKS, build_attack
    from trl.cli.sources import parse_choice
    from trl.common.numbers import NonNegative
    from trl.threat import build_threat

    try:
        epsilon: float = TypeAdapter(NonNegative).validate_python(given.epsilon)
    except ValidationError:
        raise TrlError(f"--epsilon {given.epsilon}: give a number of at least 0, such as 8/255") from None
    if given.samples is not None and given.samples < 1:
        raise TrlError(f"--samples {given.samples}: give at least 1")
    threat = build_threat(given.norm, epsilon)
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
    return threat, attacks, described


def _circumstances(device: str) -> dict[str, Any]:
    import platform
    from datetime import UTC, datetime

    import torch

    from trl.common.code_version import version

    return {
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("tla-robustness", "torch", "numpy")},
        },
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _sha256(state: "dict[str, Any]") -> str:
    """A hash of a state dict as safetensors would write it; for a model, that of the file `save_model` writes.

    Anything but plain tensors, such as quantised weights and extra state, is hashed in addition.
    """
    import hashlib

    import torch
    from safetensors.torch import save
    from torch.utils._pytree import tree_flatten_with_path

    tensors, others = {}, []
    for path, leaf in tree_flatten_with_path(state)[0]:
        name = ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
        if isinstance(leaf, torch.Tensor):
            plain = (
                leaf.dequantize() if leaf.is_quantized else leaf.to_dense() if leaf.layout != torch.strided else leaf
            )
            tensors[name] = plain.detach().cpu().contiguous().clone()
        else:
            others.append(re.sub(" at 0x[0-9a-f]+", "", f"{name} {leaf!r}"))
    found = hashlib.sha256(save(tensors))
    if others:
        found.update("\n".join(others).encode())
    return found.hexdigest()


def _check_writable(*paths: Path | None) -> None:
    """TrlError, before any work, if a result file cannot be written."""
    for path in filter(None, paths):
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if path.is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise TrlError(f"{path}: cannot be written; give a file in a writable folder")


if __name__ == "__main__":
    sys.exit(main())
