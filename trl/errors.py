"""The one exception a user is meant to read, and how it quotes others."""


class TrlError(Exception):
    """A problem the user can mend: its message says, in one line, what is wrong and what to do about it."""


def in_one_line(error: Exception) -> str:
    """An exception that is not ours, for such a message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
