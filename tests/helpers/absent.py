"""Peers that are not installed."""

import builtins
from typing import Any

import pytest


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """To import one of `packages` fails, as where it is not installed."""
    imported = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] in packages:
            raise ModuleNotFoundError(name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
