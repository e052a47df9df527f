"""Proxies that the environment names: never for this machine's own addresses.

One place serves every library that reads `NO_PROXY`: httpx, requests, urllib, gRPC; child processes inherit it.
"""

from collections.abc import MutableMapping
from typing import Final

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


def bypass_proxies_for_loopback(environment: MutableMapping[str, str]) -> None:
    """Exempt loopback addresses from the proxies in an environment; other exemptions stay."""
    names = ("no_proxy", "NO_PROXY")
    given = ",".join(environment.get(name, "") for name in names).split(",")
    exempt = ",".join(dict.fromkeys([*filter(None, map(str.strip, given)), *_LOOPBACK]))
    environment.update(dict.fromkeys(names, exempt))
