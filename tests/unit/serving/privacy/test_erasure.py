"""Erasure through the API: the receipt, the roles, and the second answer."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from uuid import uuid4

import pytest

from serving.api.schemas.erasures import ErasureResponse
from serving.core.caller import Role
from tests.support.app import Platform, fake_platform

pytestmark = pytest.mark.anyio


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    async with fake_platform() as ready:
        yield ready


async def test_a_users_data_go_with_a_receipt_and_again_with_zeros(platform: Platform) -> None:
    async with platform.client(Role.ADMIN) as admin:
        user = (await admin.post("/v1/users", json={"username": "ada", "email": "ada@example.org"})).json()
        body = {"texts": ["good one", "shared"], "user_id": user["id"]}
        predictions = (await admin.post("/v1/predict/batch", json=body)).json()["predictions"]
        await admin.post("/v1/predict", json={"text": "shared"})
        judged = {"prediction_id": predictions[0]["id"], "is_correct": False, "comment": "no"}
        assert (await admin.post("/v1/feedback", json=judged)).status_code == 201
        first = await admin.delete(f"/v1/users/{user['id']}/data")
        second = await admin.delete(f"/v1/users/{user['id']}/data")
        gone = await admin.get(f"/v1/predictions/{predictions[0]['id']}")
    receipt = ErasureResponse.model_validate_json(first.content)
    assert (first.status_code, first.headers["cache-control"]) == (200, "no-store")
    assert (receipt.erased.predictions, receipt.erased.texts, receipt.erased.comments) == (2, 1, 1)
    assert [str(text_id) for text_id in receipt.shared.text_ids] == [predictions[1]["text_id"]]
    assert receipt.backups_expire_at - receipt.erased_at == timedelta(days=30)
    assert datetime.now(receipt.erased_at.tzinfo) - receipt.erased_at < timedelta(minutes=1)
    assert (second.status_code, set(second.json()["erased"].values())) == (200, {0})
    assert gone.status_code == 404


async def test_a_text_is_erased_for_every_sender(platform: Platform) -> None:
    async with platform.client() as client, platform.client(Role.ADMIN) as admin:
        prediction = (await client.post("/v1/predict", json={"text": "good"})).json()
        await admin.post("/v1/predict", json={"text": "good"})
        first = await admin.delete(f"/v1/texts/{prediction['text_id']}")
        assert (first.json()["kind"], first.json()["erased"]["predictions"]) == ("text", 2)
        assert (await admin.delete(f"/v1/texts/{prediction['text_id']}")).json()["erased"]["predictions"] == 0
        assert (await client.get("/v1/predictions")).json()["items"] == []


async def test_what_is_unknown_or_malformed_or_not_theirs_is_a_problem(platform: Platform) -> None:
    async with platform.client(Role.ADMIN) as admin, platform.client() as client:
        for path in (f"/v1/users/{uuid4()}/data", f"/v1/texts/{uuid4()}"):
            assert (await admin.delete(path)).status_code == 404
            assert (await client.delete(path)).status_code == 403
        assert (await admin.delete("/v1/texts/none")).status_code == 422
        assert platform.store is not None
        platform.store.down = True
        assert (await admin.delete(f"/v1/texts/{uuid4()}")).status_code == 503
