"""A sign that a figure may not mean what it seems to."""

from typing import NamedTuple


class Sign(NamedTuple):
    """Of a mistake, or of gradient masking: its `name`, and what was seen, why it matters and what to do."""

    name: str
    message: str
