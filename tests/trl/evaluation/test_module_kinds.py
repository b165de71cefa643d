"""Models as people have them: the table in docs/models.md is what each kind does."""

import pytest

from tests.helpers.module_kinds import KINDS, PAGE, row


@pytest.mark.parametrize("kind", KINDS)
def test_the_docs_say_what_works(kind: str) -> None:
    found = row(kind)
    assert f"{found}\n" in PAGE.read_text(), f"python -m tests.helpers.module_kinds writes:\n{found}"
