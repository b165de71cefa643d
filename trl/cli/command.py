"""What the commands that judge a model share: sources, the loop from arguments to JSON, and what the JSON says."""

import argparse
import contextlib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trl.common.errors import TrlError, in_one_line, origin

if TYPE_CHECKING:  # load PyTorch only after parsing the arguments
    from torch import Tensor, nn

Result = dict[str, Any]


def run(
    command: str,
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], Result],
    table: Callable[[Result], str],
    arguments: Sequence[str] | None,
) -> int:
    """Parse the command line, `work`, write the result as JSON and show its `table`; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    given = parser.parse_args(arguments)
    try:
        check_writable(given.out)
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for JSON only
            result = work(given)
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
        again = f"{command} {shlex.join(arguments)}"
        how = "to resume" if given.state else "nothing is saved without --state FOLDER; to start over"
        print(f"interrupted; {how}: {again}", file=sys.stderr)
        return 130
    return 0


class Opened(NamedTuple):
    """A model on its device, images and labels."""

    model: "nn.Module"
    x: "Tensor"
    y: "Tensor"


def open_both(given: argparse.Namespace, device: str, images: int | None) -> tuple[Opened, Result, list[str]]:
    """The model and the first `images` of the data (all if None), what the JSON says of them, and warnings."""
    from trl.cli.sources import open_images, open_model
    from trl.nn.inference import try_out

    x, y, classes = open_images(given.data, images)
    model, warnings = open_model(given.model, given.architecture, tuple(x.shape[1:]))
    known = try_out(model.to(device), x).shape[1]
    if classes and classes != known:
        raise TrlError(
            f"the model has {known} classes, but {given.data} has {classes}; give the data that it was trained on"
        )
    facts = {
        "model": {
            "source": given.model,
            "sha256": sha256(model.state_dict()),
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "data": {"source": given.data, "samples": len(x), "sha256": sha256({"images": x, "labels": y})},
    }
    return Opened(model, x, y), facts, warnings


def out_of_memory(device: str, batch_size: int) -> TrlError:
    """The error of a batch that is too large for the device."""
    return TrlError(f"{device} runs out of memory with batches of {batch_size} images; lower --batch-size")


class _List(argparse.Action):
    """`--list`: all names with options and defaults; not part of --help, because it loads PyTorch."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from trl.attacks import ATTACKS
        from trl.data import DATASETS
        from trl.models import MODELS
        from trl.regions import REGIONS

        known = (("attacks", ATTACKS), ("architectures", MODELS), ("data sets", DATASETS), ("regions", REGIONS))
        for heading, registry in known:
            print(f"{heading}:")
            for name in registry.names():
                fields = registry.options(name.replace("*", "28_10")).model_fields
                shown = (f"{key}={'…' if f.is_required() else f.default}" for key, f in fields.items())
                print(f"  {name}  {', '.join(shown)}".rstrip())
        parser.exit()


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Arguments that name a model and its data."""
    add = parser.add_argument
    add("--list", action=_List, nargs=0, help="print all attacks, architectures, data sets and regions with options")
    add(
        "--model",
        required=True,
        help="a folder with model.safetensors and config.json; a weights file (.safetensors, .pt, .pth, .ckpt, …); or "
        "package.module:function, which returns a torch.nn.Module that maps [0, 1] images to logits",
    )
    add("--architecture", metavar="NAME[:OPTIONS]", help="the architecture of a weights file, such as wrn_34_10")
    add("--data", required=True, help="the name of a data set (its test images), as NAME[:OPTIONS], or a "
        ".safetensors or .npz file with images [n, c, h, w] (uint8, or float in [0, 1]) and labels [n]")  # fmt: skip


def add_common(parser: argparse.ArgumentParser) -> None:
    """Arguments about how the command runs."""
    add = parser.add_argument
    add("--device", help="cpu, cuda, cuda:1, … (default: TRL_DEVICE, or the GPU if there is one)")
    add("--state", type=Path, metavar="FOLDER", help="save progress there, so that the same command can resume")
    add("--out", type=Path, metavar="FILE", help="write the JSON there instead of to standard output")
    add("--debug", action="store_true", help="show the full traceback of an error")


def circumstances(device: str) -> dict[str, Any]:
    """Versions, device and date, for the JSON."""
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


def sha256(state: "dict[str, Any]") -> str:
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


def check_writable(*paths: Path | None) -> None:
    """TrlError, before any work, if a result file cannot be written."""
    for path in filter(None, paths):
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if path.is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise TrlError(f"{path}: cannot be written; give a file in a writable folder")
