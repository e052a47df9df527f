"""The authorisation matrix, found by asking: role × route × owner of the rows.

`python -m tests.support.authorisation` writes it to `docs/authorisation.md`, which a test compares.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import httpx
from fastapi import FastAPI

from registry.bundles.bundle import LABELS
from serving.accounts.authentication import GeneratedKey
from serving.api.security import GuardedRoute
from serving.core.caller import Role
from tests.support.app import MODEL, Platform, add_key, fake_platform

FILE: Final = Path(__file__).parents[2] / "docs" / "authorisation.md"
ROLES: Final = ("nobody", "client", "engineer", "admin")
_WORDS: Final = "the battery lasts and lasts"
_HEADING: Final = """# Who may do what
Found by asking every route as everybody (`python -m tests.support.authorisation`), and compared by a test. A client
stores judged texts. Then its own key asks, another key of the same user, a key of another user, an engineer's and an
admin's.

| entry | meaning |
|---|---|
| – | refused: 401 without a key, 403 with one |
| own | rows that keys of the same user stored (a key without a user: that it stored itself); others' don't exist: 404 |
| all | everyone's rows |
| yes | the route answers, and showed none of these rows |

| route | no key | `client` | `engineer` | `admin` |
|---|---|---|---|---|
"""


def routes(app: FastAPI) -> Iterator[tuple[str, GuardedRoute]]:
    """Yield each route with each of its methods."""
    for route in _walk(app.routes):
        for method in sorted((route.methods or set()) - {"HEAD"}):
            yield method, route


def _walk(nested: Iterable[Any]) -> Iterator[GuardedRoute]:
    for route in nested:
        if isinstance(route, GuardedRoute):
            yield route
        else:
            yield from _walk(getattr(route, "routes", ()))


class Inquiry:
    """A platform on which a client has stored judged texts, and keys of all kinds."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._keys: dict[str, GeneratedKey | None] = {
            "nobody": None,
            "engineer": platform.keys[Role.ENGINEER],
            "admin": platform.keys[Role.ADMIN],
        }
        self._values: dict[str, str] = {"name": MODEL, "version": "2", "file": "console.js"}
        self._marks: list[str] = [_WORDS]

    async def prepare(self) -> None:
        """Make the keys, and store the texts."""
        owners = {"client": "ada", "colleague": "ada", "stranger": "bob"}
        async with self._platform.client(Role.ADMIN) as admin:
            users = {
                name: (
                    await admin.post("/v1/users", json={"username": name, "email": f"{name}@example.org"})
                ).json()["id"]
                for name in set(owners.values())
            }
        for asker, owner in owners.items():
            self._keys[asker] = await add_key(
                self._platform.key_records, Role.CLIENT, owner=UUID(users[owner])
            )
        self._values |= {"user_id": users["ada"], "key_id": str(self._id_of("client"))}
        for ending in ("", " long", " longer", " longest", "!"):
            stored = (await self._send("client", "POST", "/v1/predict", {"text": _WORDS + ending})).json()
            self._values.setdefault("prediction_id", stored["id"])
            self._values.setdefault("text_id", stored["text_id"])
            self._marks.append(stored["id"])
            if ending != "!":
                wrong = next(name for name in LABELS if name != stored["sentiment"])
                body = {"prediction_id": stored["id"], "is_correct": False, "label": wrong}
                await self._send("client", "POST", "/v1/feedback", body)

    async def ask(self, method: str, route: GuardedRoute) -> tuple[str, ...]:
        """Return what each of `ROLES` gets of a route; the admin, who may remove things, asks last."""
        answers = {
            asker: await self._send(
                asker, method, route.path.format_map(_Values(self._values)), self._body(route)
            )
            for asker in ("nobody", "client", "colleague", "stranger", "engineer", "admin")
        }
        return tuple(self._entry(role, answers) for role in ROLES)

    def _entry(self, role: str, answers: Mapping[str, httpx.Response]) -> str:
        if answers[role].status_code in (401, 403):
            return "–"
        shown = {asker for asker, answer in answers.items() if self._shows(answer)}
        if role not in shown:
            return "yes"
        if role == "client" and "stranger" not in shown:
            return "own" if "colleague" in shown else "this key's"
        return "all"

    def _body(self, route: GuardedRoute) -> Any:
        """Return a body that finds stored rows; an empty one for the routes that would store some."""
        if route.access.body is None:
            return None
        bodies = {
            "/v1/feedback": {"prediction_id": self._marks[-1], "is_correct": True},
            "/v1/similar": {"text": _WORDS},
            "/v1/duplicates": {"text": f"{_WORDS}!", "min_similarity": 0.0},
        }
        return bodies.get(route.path, {})

    def _shows(self, answer: httpx.Response) -> bool:
        return answer.status_code < 400 and any(mark in answer.text for mark in self._marks)

    def _id_of(self, asker: str) -> UUID:
        key = self._keys[asker]
        assert key is not None
        return key.id

    async def _send(self, asker: str, method: str, path: str, body: Any) -> httpx.Response:
        key = self._keys[asker]
        async with self._platform.client(None, key=key.text if key else None) as client:
            return await client.request(method, path, json=body)


class _Values(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return str(UUID(int=0))


async def matrix() -> list[tuple[str, tuple[str, ...]]]:
    """Return each route with what each of `ROLES` gets of it."""
    async with fake_platform() as platform:
        asked = [(method, route.path) for method, route in routes(platform.app)]
    rows = []
    for place, (method, path) in enumerate(asked):
        async with fake_platform() as platform:
            inquiry = Inquiry(platform)
            await inquiry.prepare()
            rows.append((f"{method} {path}", await inquiry.ask(*list(routes(platform.app))[place])))
    return rows


def page() -> str:
    """Return the page of the docs."""
    lines = [f"| `{route}` | {' | '.join(cells)} |" for route, cells in asyncio.run(matrix())]
    return _HEADING + "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
