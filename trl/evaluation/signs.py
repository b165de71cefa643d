"""A sign that a figure may be misleading."""

from typing import NamedTuple


class Sign(NamedTuple):
    """A sign of a mistake or of gradient masking; `message`: what was seen, why it matters and what to do."""

    name: str
    message: str
