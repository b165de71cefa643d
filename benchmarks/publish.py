"""Publish the figures of a benchmark: on the terminal, and in a file with a plot."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Found = dict[str, Any]


def publish(
    found: Found, report: Callable[[Found], str], plot: Callable[[Found, Path], None], out: Path | None
) -> None:
    """Print the report; with `out`, also write all figures as JSON and the plot under the same name."""
    print(report(found))
    if out:
        out.write_text(json.dumps(found, indent=2) + "\n")
        plot(found, out.with_suffix(".png"))
