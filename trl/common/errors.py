"""The one exception a user is meant to read, and how it quotes others."""

import traceback


class TrlError(Exception):
    """A problem the user can mend: its message says, in one line, what is wrong and what to do about it."""


def in_one_line(error: BaseException) -> str:
    """An exception for such a message, with the name of its kind unless it is ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, TrlError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def origin(error: BaseException) -> str:
    """`file:line` where an exception was raised; nothing if that is not known."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
