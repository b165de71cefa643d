"""Robust accuracy of a model, from the shell: JSON on standard output, a table and progress on standard error.

    python -m trl.cli.evaluate --model MODEL --data DATA --epsilon 8/255

Exit status: 0; 1 with one line `error: …`; 2 for a command line that cannot be read; 130 when interrupted.
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

if TYPE_CHECKING:  # PyTorch is loaded when the arguments have been read
    from trl.attacks import Attack
    from trl.threat import Threat

COMMAND = "python -m trl.cli.evaluate"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, evaluate and write the result; the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    given = _parser().parse_args(arguments)
    try:
        _check_writable(given.out, given.save_adversarials)
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the JSON alone
            result = robustness(given)
            print(f"\n{table(result)}")
        if given.out is None:
            print(json.dumps(result, indent=2, allow_nan=False))
        else:
            from trl.common.files import write_json

            write_json(given.out, result)
    except Exception as error:  # ours, or whatever the user's model raises
        if given.debug:
            raise
        where = "" if isinstance(error, TrlError) else f" ({origin(error)}); --debug shows the traceback"
        print(f"error: {in_one_line(error)}{where}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = f"{COMMAND} {shlex.join(arguments)}"
        how = "to go on where it stopped" if given.state else "nothing is kept without --state FOLDER; to start anew"
        print(f"interrupted; {how}: {again}", file=sys.stderr)
        return 130
    return 0


def robustness(given: argparse.Namespace) -> dict[str, Any]:
    """Evaluate what the arguments name; the result as JSON holds it. TrlError if they name nothing that can be."""
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
        raise TrlError(f"the model has {known} classes, but {given.data} has {classes}; give the data it is for")
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
        raise TrlError(f"{device} has too little memory for {given.batch_size} images; lower --batch-size") from None
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
    """The figures for a reader: a line for the images as they are, each attack, its parts, and the worst case."""
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
    """`--list`: what can be named, with options and their defaults; apart from --help, since it loads PyTorch."""

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
        help="a folder with model.safetensors and config.json; a file of weights (.safetensors, .pt, .pth, .ckpt, …); "
        "or package.module:function, which gives a torch.nn.Module from [0, 1] images to logits",
    )
    add("--architecture", metavar="NAME[:OPTIONS]", help="what a file of weights belongs to, such as wrn_34_10")
    add("--data", required=True, help="a data set's name (its test images), with options as for --attack, or a "
        ".safetensors or .npz file with images [n, c, h, w] (uint8, or float in [0, 1]) and labels [n]")  # fmt: skip
    add("--samples", type=int, metavar="N", help="the first N images (default: all)")
    add("--norm", default="linf", help="the threat's norm (default linf)")
    add("--epsilon", required=True, help="the largest perturbation of images in [0, 1], such as 8/255")
    add(
        "--attack",
        action="append",
        metavar="NAME[:OPTIONS]",
        help="such as pgd:steps=50,step_size=2/255; may be repeated (default autoattack)",
    )
    add("--batch-size", type=int, default=500, metavar="N", help="images at a time (default 500)")
    add(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="bf16 lets gradient attacks search in it, where that is measured to be faster; decisions are in fp32",
    )
    add(
        "--eight-bit",
        action="store_true",
        help="count only what survives being rounded to 256 levels, as adversarial images are in a PNG",
    )
    add("--seed", type=int, default=0, help="of the attacks' randomness (default 0)")
    add("--device", help="cpu, cuda, cuda:1, … (default: TRL_DEVICE, or the GPU if there is one)")
    add("--state", type=Path, metavar="FOLDER", help="keep what is done there, so that the same command can go on")
    add("--out", type=Path, metavar="FILE", help="write the JSON there instead of to standard output")
    add(
        "--save-adversarials",
        type=Path,
        metavar="FILE.safetensors",
        help="write what became of every image there, with its label: a file that --data reads. It is the worst case, "
        "unless the model answers at random, which a warning says",
    )
    add("--debug", action="store_true", help="show the traceback of an error instead of one line")
    return parser


def _attacks(given: argparse.Namespace) -> "tuple[Threat, dict[str, Attack], dict[str, Any]]":
    """The threat, the attacks by the name of their figures, and the same attacks as the JSON describes them."""
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
    """Of a state dict as safetensors writes it: for a model the hash of the file that `save_model` writes.

    What is no plain tensor, such as quantised weights and extra state, is hashed beside it.
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
    """TrlError before any work for a file that cannot be written after it."""
    for path in filter(None, paths):
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if path.is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise TrlError(f"{path}: cannot be written; name a file in a folder that can be")


if __name__ == "__main__":
    sys.exit(main())
