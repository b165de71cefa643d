"""Names that users choose, such as a method's: they become parts of paths, of stage names and of shell commands."""

import re

from trl.common.errors import TrlError

_ALLOWED = re.compile(r"\w[\w.-]*", re.ASCII)


def is_name(text: str) -> bool:
    """Whether `text` is a name that cannot change the meaning of a path or of a command that it is part of."""
    return _ALLOWED.fullmatch(text) is not None


def check_name(text: str, what: str) -> str:
    """`text`, if it is a name; else a TrlError that says `what` it was to be the name of."""
    if not is_name(text):
        raise TrlError(
            f"{what} {text!r} cannot be used: rename it with ASCII letters, digits, '_', '.' and '-' only, "
            "and no '.' or '-' at its beginning"
        )
    return text
