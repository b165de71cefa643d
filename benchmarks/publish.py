"""Where the figures of a benchmark go: to the terminal, and to a file with a plot beside it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Found = dict[str, Any]


def publish(
    found: Found, report: Callable[[Found], str], plot: Callable[[Found, Path], None], out: Path | None
) -> None:
    """Print the report; with `out` also write all figures as JSON, and the plot under its name."""
    print(report(found))
    if out:
        out.write_text(json.dumps(found, indent=2) + "\n")
        plot(found, out.with_suffix(".png"))
