"""The proxies that can be named: a new one is a file and a line here."""

from trl.registry import Registry

PROXIES = Registry(
    "proxy",
    {
        "file": "trl.proxies.file:file",
        "gaussian": "trl.proxies.gaussian:gaussian",
        "kde": "trl.proxies.kde:kde",
        "noise": "trl.proxies.noise:noise",
    },
)
