"""Seeds derived from where they are used, so that a resumed run draws the same numbers as an uninterrupted one."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2⁶³) that depends on all `parts` (such as the run's seed, a purpose and a step)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
