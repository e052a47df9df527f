"""The address that a request comes from, past the proxies that stand in front."""

from starlette.types import Scope

UNKNOWN = "unknown"


def client_address(scope: Scope, proxies: int) -> str:
    """Return the client's address; each of `proxies` appends to X-Forwarded-For the address that it was called from."""
    if proxies:
        chain = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
        addresses = [each.strip() for each in chain.decode("latin-1").split(",") if each.strip()]
        if len(addresses) >= proxies:
            return addresses[-proxies]
    client = scope.get("client")
    return str(client[0]) if client else UNKNOWN
