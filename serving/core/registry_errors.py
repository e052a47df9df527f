"""The border between the registry, which blocks and has its own errors, and this layer."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from registry.errors import NotRegistered, RegistryError
from serving.errors import NotReady

T = TypeVar("T")


async def call_registry(call: Callable[..., T], *arguments: object) -> T:
    """Call a blocking method of the registry in a thread, and return its result.

    Raises:
        NotRegistered: the registry holds no such thing.
        NotReady: the registry can't be used.
    """
    try:
        return await asyncio.to_thread(call, *arguments)
    except NotRegistered:
        raise
    except RegistryError as error:
        raise NotReady(str(error), retry_after=2) from error
