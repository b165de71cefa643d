"""The exception whose message is meant for users, and helpers to quote other exceptions."""

import traceback


class TrlError(Exception):
    """A problem that the user can fix; the message says in one line what is wrong and how to fix it."""


def in_one_line(error: BaseException) -> str:
    """An exception as one line of text, with its type unless it is a TrlError."""
    text = " ".join(str(error).split())
    return text if isinstance(error, TrlError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def explained(error: OSError) -> TrlError:
    """What the system refused, such as a write to a full disk or to a read-only folder, in one line with the remedy."""
    place = f"{error.filename}: " if error.filename else ""
    why = error.strerror or in_one_line(error)
    return TrlError(f"{place}{why}: free space or check permissions, then repeat the command")


def origin(error: BaseException) -> str:
    """`file:line` where an exception was raised; "" if unknown."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
