"""The border between the registry's blocking calls and errors, and this layer's."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from registry.errors import NotRegistered, RegistryError
from serving.errors import NotReady

T = TypeVar("T")


async def call_registry(call: Callable[..., T], *arguments: object) -> T:
    """What the registry says to a call that blocks.

    Raises:
        NotRegistered: as the registry does; that is for the caller.
        NotReady: it can't be used.
    """
    try:
        return await asyncio.to_thread(call, *arguments)
    except NotRegistered:
        raise
    except RegistryError as error:
        raise NotReady(str(error), retry_after=2) from error
