"""The console's files: readable without a key, under a strict content security policy."""

import re
from collections.abc import AsyncIterator
from importlib.resources import files

import httpx
import pytest

from serving.api.routes.console import POLICY
from tests.support.app import fake_platform

pytestmark = pytest.mark.anyio


@pytest.fixture
async def anybody() -> AsyncIterator[httpx.AsyncClient]:
    async with fake_platform() as platform, platform.client(None) as client:
        yield client


async def test_the_page_and_every_part_it_names_are_sent(anybody: httpx.AsyncClient) -> None:
    page = await anybody.get("/console")
    assert page.status_code == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    parts = set(re.findall(r'(?:href|src)="(console/[^"]+)"', page.text))
    assert {"console/console.css", "console/console.js", "console/icon.svg"} <= parts
    for part in parts:
        assert (await anybody.get(f"/{part}")).status_code == 200


async def test_every_file_forbids_inline_scripts_frames_and_sniffing(anybody: httpx.AsyncClient) -> None:
    for name in ("", "/console.js", "/console.css", "/api.js", "/parts.js", "/icon.svg"):
        headers = (await anybody.get(f"/console{name}")).headers
        assert headers["Content-Security-Policy"] == POLICY
        assert headers["X-Content-Type-Options"] == "nosniff"
    assert "unsafe" not in POLICY
    assert "frame-ancestors 'none'" in POLICY


def test_the_page_keeps_to_its_policy() -> None:
    page = (files("serving.console") / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=|https?://", page)
    for script in ("console.js", "parts.js", "api.js"):
        source = (files("serving.console") / script).read_text(encoding="utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage", source
        )


async def test_known_content_is_not_sent_again(anybody: httpx.AsyncClient) -> None:
    first = await anybody.get("/console/console.js")
    again = await anybody.get("/console/console.js", headers={"If-None-Match": f"W/{first.headers['ETag']}"})
    assert (again.status_code, again.content) == (304, b"")
    other = await anybody.get("/console/console.js", headers={"If-None-Match": '"something else"'})
    assert other.content == first.content


@pytest.mark.parametrize("name", ["nothing.js", "__init__.py", "..%2F__init__.py", "%2e%2e"])
async def test_nothing_else_is_sent(anybody: httpx.AsyncClient, name: str) -> None:
    answer = await anybody.get(f"/console/{name}")
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


async def test_the_slash_leads_to_the_page(anybody: httpx.AsyncClient) -> None:
    answer = await anybody.get("/console/")
    assert (answer.status_code, answer.headers["Location"]) == (308, "../console")
