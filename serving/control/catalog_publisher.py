"""Publish the catalog: its revisions, and the callers that wait for the next one."""

import asyncio
from dataclasses import replace

import structlog

from serving.core.catalog import Catalog

log = structlog.get_logger(__name__)


class CatalogPublisher:
    """The catalog that was published last; a catalog with other content gets the next revision.

    `first`: the revision of the first published catalog, at least 1.
    """

    def __init__(self, first: int) -> None:
        self._next_revision = first
        self._catalog = Catalog()
        self._changed = asyncio.Condition()

    @property
    def catalog(self) -> Catalog:
        """The last published catalog; its revision is 0 if none has been published."""
        return self._catalog

    async def watch(self, revision: int, timeout: float) -> Catalog:
        """Return the catalog once its revision differs from `revision`, or after `timeout` seconds."""
        async with self._changed:
            try:
                async with asyncio.timeout(timeout):
                    await self._changed.wait_for(lambda: self._catalog.revision not in (0, revision))
            except TimeoutError:
                pass
        return self._catalog

    async def publish(self, catalog: Catalog) -> None:
        """Publish a catalog unless it equals the last one, whatever their revisions."""
        catalog = replace(catalog, revision=self._next_revision)
        if catalog == replace(self._catalog, revision=self._next_revision):
            return
        async with self._changed:
            self._catalog = catalog
            self._next_revision += 1
            self._changed.notify_all()
        log.info("catalogue.published", revision=catalog.revision)
