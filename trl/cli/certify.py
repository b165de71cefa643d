"""Certify a model by randomized smoothing. Prints JSON on standard output, a table and progress on standard error.

    python -m trl.cli.certify --model MODEL --data DATA --sigma 0.25

Exit status: 0 on success; 1 after a line `error: …`; 2 for invalid arguments; 130 when interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl.cli.command import add_common, add_sources, check_writable, circumstances, open_both, out_of_memory, run
from trl.common.errors import TrlError

COMMAND = "python -m trl.cli.certify"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, certify and write the result; returns the exit status."""
    return run(COMMAND, _parser(), certificates, table, arguments)


def certificates(given: argparse.Namespace) -> dict[str, Any]:
    """Certify as the arguments say; returns the result ready for JSON. TrlError for invalid arguments."""
    import torch
    from safetensors.torch import save

    from trl.cli.sources import model_key
    from trl.common.files import write_atomic
    from trl.evaluation import certify
    from trl.nn.device import choose_device

    check_writable(given.save_certificates)
    if given.images is not None and given.images < 1:
        raise TrlError(f"--images {given.images}: give at least 1")
    for radius in given.radius or ():
        if not radius >= 0:
            raise TrlError(f"--radius {radius}: give a number of at least 0, such as 0.5")
    device = choose_device(given.device)
    (model, x, y), facts, warnings = open_both(given, device, given.images)
    try:
        found = certify(
            *(model, x, y, given.sigma),
            selection=given.selection,
            samples=given.samples,
            alpha=given.alpha,
            batch_size=given.batch_size,
            seed=given.seed,
            state=given.state,
            key=model_key(given.model, model) if given.state else None,
        )
    except torch.OutOfMemoryError:
        raise out_of_memory(device, given.batch_size) from None
    if given.save_certificates:
        stored = {"predictions": found.predictions, "radii": found.radii, "labels": found.labels}
        write_atomic(given.save_certificates, save(stored))
    radii = tuple(given.radius or (given.sigma * step / 2 for step in range(6)))
    return {
        **facts,
        "batch_size": given.batch_size,
        "seed": given.seed,
        **circumstances(device),
        **found.result().content(),
        "certified": [point.model_dump() for point in found.curve(radii)],
        "warnings": warnings,
    }


def table(result: dict[str, Any]) -> str:
    """The figures as a table: a line for each radius."""
    lines = [
        f"model   {result['model']['source']} ({result['model']['sha256'][:12]})",
        f"data    {result['data']['source']}, {result['data']['samples']:,} images",
        f"noise   sigma {result['sigma']:g}, {result['samples']:,} draws per image, alpha {result['alpha']:g}",
        "",
        "l2 radius  certified       interval   (percent, with 95 % intervals)",
    ]
    for point in result["certified"]:
        accuracy, low, high = (100 * point[key] for key in ("accuracy", "low", "high"))
        lines.append(f"{point['radius']:9.4g}{accuracy:11.2f}  {low:6.2f}–{high:5.2f}")
    lines += ["", f"abstained {result['abstained']:.2%}, mean radius {result['mean_radius']:.4g}"]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in result["warnings"])])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_sources(parser)
    add("--images", type=int, metavar="N", help="use only the first N images (default: all)")
    add("--sigma", type=float, required=True, help="standard deviation of the noise, for images in [0, 1]")
    add("--samples", type=int, default=10_000, metavar="N", help="noisy copies per image to certify (default 10000)")
    add("--selection", type=int, default=100, metavar="N", help="noisy copies to select a class (default 100)")
    add("--alpha", type=float, default=0.001, help="probability of a wrong certificate per image (default 0.001)")
    add(
        "--radius",
        type=float,
        action="append",
        metavar="R",
        help="an l2 radius to report; may be repeated (default: 0 to 2.5 sigma in steps of half a sigma)",
    )
    add("--batch-size", type=int, default=1000, metavar="N", help="noisy copies per pass (default 1000)")
    add("--seed", type=int, default=0, help="seed of the noise (default 0)")
    add(
        "--save-certificates",
        type=Path,
        metavar="FILE.safetensors",
        help="write every image's prediction (-1: abstained), radius and label there",
    )
    add_common(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
