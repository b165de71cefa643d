"""Keep credentials out of all that is printed, logged or stored: those in addresses, and those in the environment."""

import os
import re
from collections.abc import Iterator, Mapping
from urllib.parse import quote, unquote

from trl.common.errors import explained

HIDDEN = "***"
SHORTEST = 4  # hide nothing shorter outside of an address: it is in many words
_VARIABLE = re.compile(r"(PASSWORD|PASSWD|TOKEN|SECRET|KEY|AUTH_STRING)$", re.IGNORECASE)
_PARAMETER = re.compile(
    r"([?&;](?:[\w.%-]*(?:password|passwd|pwd|token|secret|signature|credential)|api[_-]?key|key|sig|auth)=)([^\s&#'\")]+)",
    re.IGNORECASE,
)
_USER = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/?#'\"]*@", re.IGNORECASE)


def redacted(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """`text` without credentials: addresses in it lose their user and password, other secrets become `***`.

    Secrets are what `environ` holds in a variable such as MLFLOW_TRACKING_PASSWORD, and in the addresses in it, as they
    are or percent-encoded; and what an address in `text` holds, also in a parameter such as `?token=…`.
    """
    known = {
        form for secret in _secrets(environ) for form in (secret, unquote(secret), quote(unquote(secret), safe=""))
    }
    for secret in sorted(known, key=len, reverse=True):
        if len(secret) >= SHORTEST:
            text = text.replace(secret, HIDDEN)
    return _PARAMETER.sub(rf"\g<1>{HIDDEN}", _USER.sub(r"\g<1>", text))


def error_line(error: Exception) -> str:
    """What a command prints of an error: one line without credentials, with the remedy if the system refused."""
    return f"error: {redacted(str(explained(error) if isinstance(error, OSError) else error))}"


def _secrets(environ: Mapping[str, str]) -> Iterator[str]:
    for name, value in environ.items():
        if _VARIABLE.search(name):
            yield value
        _, found, address = value.partition("://")
        if found:
            user, _, _ = address.rpartition("@")  # the last one: a password may hold an @, a / or a ?
            _, _, password = user.partition(":")
            yield password or user
            for cut in re.finditer(r"[/?#@]", password):  # where a parser may take the rest for a host or a path
                yield from (password[: cut.start()], password[cut.end() :])
            yield from (secret for _, secret in _PARAMETER.findall(address))
