"""The names that `trl` itself offers: those of its modules, imported when they are used."""

import subprocess
import sys

import pytest

import trl


@pytest.mark.parametrize("name", trl.__all__)
def test_each_is_the_name_of_a_module_and_listed(name: str) -> None:
    found = getattr(trl, name)
    assert found.__name__ == name
    assert getattr(sys.modules[found.__module__], name) is found
    assert name in dir(trl)


def test_others_are_missing() -> None:
    with pytest.raises(AttributeError, match="module 'trl' has no attribute 'pdg'"):
        _ = trl.pdg  # type: ignore[attr-defined]


def test_import_loads_no_pytorch() -> None:
    code = "import sys, trl; assert 'torch' not in sys.modules; trl.Linf; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
