"""Encryption through the API and the command line: clients see a difference only in requests that are refused."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from db.core.cipher import Cipher
from serving.cli import main
from serving.core.caller import Role
from tests.support.app import Platform, stored_platform
from tests.support.stored_content import read_tables

pytestmark = pytest.mark.anyio

TEXT, COMMENT = "my address is Samarkand-12", "no, it is Bukhara-13"
WORDS = ("Samarkand", "Bukhara")
KEYS = ("one:" + "MTEx" * 10 + "MTE=", "two:" + "MjIy" * 10 + "MjI=")


@pytest.fixture
async def platform(url: str) -> AsyncIterator[Platform]:
    async with stored_platform(url, cipher=Cipher.parse(KEYS[0])) as running:
        yield running


async def use_platform(platform: Platform) -> str:
    """Send a prediction and feedback, each twice; look it up and search for it; return its id."""
    async with platform.client() as client:
        sent: list[dict[str, Any]] = []
        for _ in range(2):
            response = await client.post("/v1/predict", json={"text": TEXT}, headers={"Idempotency-Key": "a"})
            assert response.status_code == 201
            sent.append(response.json())
        assert sent[0] == sent[1]
        body = {"prediction_id": sent[0]["id"], "is_correct": False, "label": "negative", "comment": COMMENT}
        for _ in range(2):
            judged = await client.post("/v1/feedback", json=body, headers={"Idempotency-Key": "b"})
            assert judged.status_code == 201
            assert judged.json()["comment"] == COMMENT
        one = (await client.get(f"/v1/predictions/{sent[0]['id']}")).json()
        assert (one["text"], one["feedback"][0]["comment"]) == (TEXT, COMMENT)
        listed = (await client.get("/v1/predictions")).json()
        assert [each["id"] for each in listed["items"]] == [sent[0]["id"]]
        result = (await client.post("/v1/similar", json={"text": TEXT, "k": 1})).json()
        assert result["results"][0]["text"] == TEXT
        assert result["results"][0]["feedback"][0]["comment"] == COMMENT
        near = await client.post("/v1/duplicates", json={"text": TEXT})
        assert near.json()["results"][0]["text"] == TEXT
    return str(sent[0]["id"])


async def test_clients_read_what_they_wrote_and_the_database_holds_none_of_it(
    platform: Platform, url: str
) -> None:
    await use_platform(platform)
    held = read_tables(url)
    assert [word for word in WORDS if word in held] == []


async def test_a_search_by_words_says_that_it_is_off(platform: Platform) -> None:
    async with platform.client() as client:
        await client.post("/v1/predict", json={"text": TEXT})
        answer = await client.post("/v1/similar", json={"text": TEXT, "keywords": "address"})
    assert answer.status_code == 409
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "search by words is off, because texts are encrypted" in answer.json()["detail"]


async def test_what_was_moved_to_another_row_is_refused_by_name_and_can_be_erased(
    platform: Platform, url: str
) -> None:
    async with platform.client() as client:
        results = [(await client.post("/v1/predict", json={"text": text})).json() for text in (TEXT, "fine")]
        with psycopg.connect(url) as connection:
            connection.execute(
                "UPDATE text_inputs SET sealed = (SELECT sealed FROM text_inputs WHERE id = %s) WHERE id = %s",
                (results[1]["text_id"], results[0]["text_id"]),
            )
        answer = await client.get(f"/v1/predictions/{results[0]['id']}")
        assert answer.status_code == 500
        assert answer.json()["type"] == "urn:valence:problem:unreadable"
        assert f"text {results[0]['text_id']} isn't what was encrypted there" in answer.json()["detail"]
    async with platform.client(Role.ADMIN) as client:
        assert (await client.delete(f"/v1/texts/{results[0]['text_id']}")).json()["erased"]["texts"] == 1
        listed = (await client.get("/v1/predictions")).json()
    assert [each["text_id"] for each in listed["items"]] == [results[1]["text_id"]]


async def test_keys_are_made_changed_and_taken_back_by_commands(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)

    def commanded(keys: str | None, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.delenv("VALENCE_TEXT_KEYS", raising=False)
        if keys is not None:
            monkeypatch.setenv("VALENCE_TEXT_KEYS", keys)
        monkeypatch.setattr(sys, "argv", ["valence", "db", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    async def run(*given: str | None) -> tuple[int, str, str]:
        # A command has its own event loop.
        return await asyncio.to_thread(commanded, *given)

    async with stored_platform(url) as plain:
        prediction = await use_platform(plain)
    assert "Samarkand" in read_tables(url)
    code, _, err = await run(None, "encrypt")
    assert (code, "valence db key" in err) == (1, True)
    code, result, _ = await run(None, "key", "--id", "one")
    assert (code, result.count("\n")) == (0, 1)
    one = result.strip()
    code, _, err = await run(f"{one},two", "encrypt")
    assert (code, err.count("\n"), err[:33]) == (1, 1, "valence: VALENCE_TEXT_KEYS, key 2")

    code, out, err = await run(one, "encrypt", "--json")
    answers = {"texts": 1, "comments": 1, "answers": 2}
    assert (code, json.loads(out)) == (0, {"rewritten": answers, "held": {"one": answers}, "let_go": []})
    assert "texts: 1 of 1 rewritten" in err
    assert "Samarkand" not in read_tables(url)
    code, _, err = await run(KEYS[1], "encrypt")
    assert (code, err.count("\n"), "key one, which" in err) == (1, 1, True)
    code, out, _ = await run(f"{KEYS[1]},{one}", "encrypt", "--json")
    assert json.loads(out)["let_go"] == ["one"]
    async with (
        stored_platform(url, cipher=Cipher.parse(KEYS[1])) as again,
        again.client(Role.ADMIN) as client,
    ):
        assert (await client.get(f"/v1/predictions/{prediction}")).json()["text"] == TEXT
    code, out, _ = await run(f"plain,{KEYS[1]}", "encrypt")
    assert (code, out.split()) == (0, ["key", "texts", "comments", "answers", "plain", "1", "1", "2"])
    async with stored_platform(url) as plain, plain.client(Role.ADMIN) as client:
        assert (await client.get(f"/v1/predictions/{prediction}")).json()["text"] == TEXT
