"""Masking and refusing on every route: the database then holds no personal data."""

from collections.abc import AsyncIterator

import pytest

from serving.privacy.masking import TextMasker
from serving.privacy.pii import PersonalDataFinder
from tests.support.app import Platform, stored_platform
from tests.support.stored_content import read_tables

pytestmark = pytest.mark.anyio

TEXT = "Call +44 20 7946 0958 or mail ada@example.org: card 4111 1111 1111 1111, DE89370400440532013000, 10.1.2.3"
MASKED = "Call <PHONE> or mail <EMAIL>: card <CARD>, <IBAN>, <IP>"
DATA = ("7946", "ada@", "4111 1111", "DE89", "10.1.2")


@pytest.fixture(scope="module")
def find() -> PersonalDataFinder:
    return PersonalDataFinder()


@pytest.fixture
async def masking(url: str, find: PersonalDataFinder) -> AsyncIterator[Platform]:
    async with stored_platform(url, privacy=TextMasker(find, "mask")) as platform:
        yield platform


@pytest.fixture
async def refusing(url: str, find: PersonalDataFinder) -> AsyncIterator[Platform]:
    async with stored_platform(url, privacy=TextMasker(find, "refuse")) as platform:
        yield platform


def infer(text: str) -> dict[str, object]:
    return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}]}


async def test_nothing_unmasked_reaches_the_database_by_any_route(masking: Platform, url: str) -> None:
    async with masking.client() as client:
        one = await client.post("/v1/predict", json={"text": TEXT}, headers={"Idempotency-Key": "one"})
        assert one.status_code == 201
        batch = await client.post("/v1/predict/batch", json={"texts": [TEXT, f"again: {TEXT}"]})
        assert batch.status_code == 201
        assert (await client.post("/v2/models/sentiment/infer", json=infer(TEXT))).status_code == 200
        ids = [one.json()["id"], *(each["id"] for each in batch.json()["predictions"])]
        for prediction_id in ids:
            stored = (await client.get(f"/v1/predictions/{prediction_id}")).json()
            assert stored["text"] in (MASKED, f"again: {MASKED}")
        given = {"prediction_id": ids[0], "is_correct": False, "comment": f"wrong, says {TEXT}"}
        judged = await client.post("/v1/feedback", json=given, headers={"Idempotency-Key": "two"})
        assert judged.json()["comment"] == f"wrong, says {MASKED}"
        similar = await client.post("/v1/similar", json={"text": TEXT, "k": 1})
        # The search used the same masked text as the stored one.
        assert similar.json()["results"][0]["text"] == MASKED
        assert similar.json()["results"][0]["similarity"] == pytest.approx(1, abs=1e-3)
    held = read_tables(url)
    assert MASKED in held
    assert [part for part in DATA if part in held] == []


async def test_the_model_reads_what_is_stored(masking: Platform) -> None:
    async with masking.client() as client:
        raw = (await client.post("/v1/predict", json={"text": TEXT, "return_embedding": True})).json()
        plain = (await client.post("/v1/predict", json={"text": MASKED, "return_embedding": True})).json()
        embedded = await client.post(
            "/v1/embeddings", json={"model": masking.services.catalog().space, "input": TEXT}
        )
    assert raw["text_id"] == plain["text_id"]
    assert raw["embedding"] == plain["embedding"]
    assert embedded.json()["data"][0]["embedding"] == pytest.approx(plain["embedding"], abs=1e-3)


async def test_refused_texts_are_422_with_kind_and_place_and_leave_nothing(
    refusing: Platform, url: str
) -> None:
    async with refusing.client() as client:
        fine = (await client.post("/v1/predict", json={"text": "fine"})).json()["id"]
        given = {"prediction_id": fine, "is_correct": True, "comment": TEXT}
        for route, body, place in (
            ("/v1/predict", {"text": TEXT}, ["body", "text"]),
            ("/v1/predict/batch", {"texts": ["fine", TEXT]}, ["body", "texts", 1]),
            ("/v1/feedback", given, ["body", "comment"]),
            ("/v1/similar", {"text": TEXT}, ["body", "text"]),
        ):
            answer = await client.post(route, json=body)
            assert answer.status_code == 422
            problem = answer.json()
            assert {str(each["loc"]) for each in problem["errors"]} == {str(place)}
            kinds = " ".join(each["msg"] for each in problem["errors"])
            assert all(f"({kind})" in kinds for kind in ("email", "iban", "card", "ip", "phone"))
            assert [part for part in DATA if part in answer.text] == []
        for route, body, status in (
            ("/v2/models/sentiment/infer", infer(TEXT), 422),
            ("/v1/embeddings", {"model": refusing.services.catalog().space, "input": [TEXT]}, 400),
        ):
            answer = await client.post(route, json=body)
            assert answer.status_code == status
            assert "email" in answer.text
            assert [part for part in DATA if part in answer.text] == []
    held = read_tables(url)
    assert [part for part in DATA if part in held] == []
