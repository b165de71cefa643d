"""The one exception a user is meant to read."""


class TrlError(Exception):
    """A problem the user can mend: its message says, in one line, what is wrong and what to do about it."""
