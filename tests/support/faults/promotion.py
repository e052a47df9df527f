"""The fault of a registry that is hurt while a version is promoted."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Final

import httpx

from registry.store.model_registry import MODEL
from tests.support.clock import eventually
from tests.support.faults.clients import judged
from tests.support.faults.fault import Injury
from tests.support.faults.ledger import Kind, Ledger
from tests.support.live import LivePlatform

_CANDIDATE: Final = "2"
_LOAD_SECONDS: Final = 60.0
_ANSWER_SECONDS: Final = 60.0
_AGREE_SECONDS: Final = 15.0


def during_promotion(injury: Injury) -> Injury:
    """Promote a running version once the injury is there; afterwards answer, history and serving must agree."""

    @contextmanager
    def hurt(platform: LivePlatform, ledger: Ledger) -> Iterator[None]:
        with httpx.Client(
            base_url=platform.url,
            headers={"Authorization": f"Bearer {platform.key}"},
            timeout=httpx.Timeout(_ANSWER_SECONDS, read=None),
        ) as client:
            eventually(lambda: _is_running(client), within=_LOAD_SECONDS, what="the candidate runs")
            answers: list[httpx.Response] = []
            thread = Thread(target=lambda: answers.append(_promote(client)), name="promotion")
            with injury(platform, ledger):
                thread.start()
                yield
            thread.join(_ANSWER_SECONDS)
            if said := _contradiction(client, answers):
                ledger.ended(Kind.FAILED, said)

    return hurt


def _promote(client: httpx.Client) -> httpx.Response:
    body = {"force": True, "reason": "a fault is tried"}
    return client.post(f"/v1/models/{MODEL}/versions/{_CANDIDATE}/promote", json=body)


def _contradiction(client: httpx.Client, answers: list[httpx.Response]) -> str:
    """Return where the answer, the history and what serves disagree; empty if they agree.

    A promotion that was refused for now is sent again, as its refusal says.
    """
    if not answers:
        return "the promotion has no answer"
    ends = time.monotonic() + _AGREE_SECONDS
    answer = answers[0]
    while not answer.is_success:
        if judged(answer)[0] is not Kind.REFUSED and answer.status_code != httpx.codes.CONFLICT:
            return f"the promotion: {answer.status_code}"
        if time.monotonic() > ends:
            return f"the promotion is still refused: {answer.status_code}"
        time.sleep(1)
        answer = _promote(client)
    while (found := (_champion(client), _answering(client))) != (_CANDIDATE, _CANDIDATE):
        if time.monotonic() > ends:
            return f"promoted, but the history says {found[0]}, and {found[1]} answers"
        time.sleep(0.2)
    return ""


def _champion(client: httpx.Client) -> str:
    return str(client.get(f"/v1/models/{MODEL}/champion").json().get("version"))


def _answering(client: httpx.Client) -> str:
    return str(client.post("/v1/predict", json={"text": "who answers?"}).json().get("model_version"))


def _is_running(client: httpx.Client) -> bool:
    response = client.post("/v1/predict", json={"text": "a text", "version": _CANDIDATE})
    return response.status_code == httpx.codes.CREATED
