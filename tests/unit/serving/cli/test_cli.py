import io
import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from db.core.cipher import Cipher
from serving.cli import main
from serving.cli.output import cell, variable
from serving.cli.platform import _TOPICS
from serving.settings import Settings

ROOT = Path(__file__).parents[4]
PREDICTION = {"id": "p1", "sentiment": "positive", "confidence": 0.9876, "model_version": "2"}
NEIGHBOUR = {
    "text_id": "t1",
    "text": "so\x1b[31m good",
    "similarity": 0.91,
    "predictions": [PREDICTION],
    "feedback": [],
}
GATES = {
    "passed": False,
    "candidate": "3",
    "champion": "2",
    "checks": [{"name": "ece", "value": 0.2, "bound": 0.1, "passed": False, "why": "the error is too large"}],
    "missing": {},
}
REPORT = {
    "held_out": {"accuracy": {"value": 0.7651, "low": 0.747, "high": 0.7812}},
    "latency": {"alone_ms": 3.6},
    "agreement": None,
    "replay": {"flips": 236, "texts": 1000, "champion_version": "2"},
}
EVALUATION = {"id": 7, "version": "3", "state": "done", "reason": None, "created_at": "now", "report": REPORT}
VERSION = {
    "model": "sentiment",
    "version": "3",
    "name": "spring",
    "description": "Trained in March.",
    "languages": ["en"],
    "kind": "head",
    "state": "ready",
    "aliases": [],
    "created_at": "now",
    "evaluations": [EVALUATION],
    "gates": GATES,
}
MOVED = {"version": "3", "previous": "2", "changed": True, "report": GATES | {"passed": True}}
REIGN = {"version": "3", "from": "then", "to": None, "act": "promote", "by": "k1", "reason": "better"}
REIGN |= {"gated": True, "forced": False}
ADA = {
    "id": "00000000-0000-4000-8000-00000000000a",
    "username": "Ada",
    "email": "ada@example.org",
    "created_at": "then",
}
ADAM = ADA | {"id": "00000000-0000-4000-8000-00000000000b", "username": "adam"}
ENTRY = {
    "id": 7,
    "at": "then",
    "actor": None,
    "action": "champion.follow",
    "subject": "sentiment",
    "detail": {"to": "3"},
}
OPINION = {
    "sentiment": "positive",
    "agreement": 0.25,
    "suggests": "negative",
    "complete": True,
    "neighbours": [{"similarity": 0.9, "sentiment": "negative", "text": "so bad"}],
}
CORRECTIONS = {
    "sentiment": "negative",
    "fixes": [{"similarity": 0.97, "text": "so bad, too", "prediction": PREDICTION}],
}
SAID = {"sentiment": "negative"}
EXAMPLE = {"text": "not bad", "from": SAID, "to": {"sentiment": "positive"}}
DIFF = {
    "compared": 1_030,
    "differing": 30,
    "matrix": {
        "negative": {"negative": 10, "neutral": 9, "positive": 21},
        "neutral": {"negative": 0, "neutral": 7, "positive": 0},
        "positive": {"negative": 0, "neutral": 0, "positive": 983},
    },
    "clusters": [{"texts": 4, "words": ["bad", "not"], "examples": [EXAMPLE]}],
}
TOPIC = {
    "texts": 9,
    "words": ["battery"],
    "sentiments": {"positive": 9},
    "accuracy": [{"model_version": "2", "judged": 4, "right": 3, "accuracy": 0.75}],
    "examples": [{"text": "it lasts"}],
}
DRIFT = {
    "window": {"sampled": 100},
    "reference": {"sampled": 700},
    "embeddings": {"mmd2": 0.01, "p_value": 0.002, "drifted": True},
    "stability": {"sentiments": 0.3, "confidences": None},
    "new": [{"nearest": 0.1, "sentiment": "neutral", "text": "unheard of"}],
}
ANSWERS: dict[tuple[str, str], tuple[int, Any]] = {
    ("POST", "/v1/predict"): (201, PREDICTION),
    ("POST", "/v1/predict/batch"): (201, {"predictions": [PREDICTION, PREDICTION]}),
    ("POST", "/v1/similar"): (200, {"results": [NEIGHBOUR], "exact": True, "complete": True}),
    ("POST", "/v1/feedback"): (201, {"prediction_id": "p1", "is_correct": False}),
    ("POST", "/v1/duplicates"): (200, {"results": [NEIGHBOUR], "exact": True, "complete": True}),
    ("GET", "/v1/predictions/p1/second-opinion"): (200, OPINION),
    ("GET", "/v1/predictions/p1/corrections"): (200, CORRECTIONS),
    ("GET", "/v1/models/sentiment/diff?from=2&to=3&was=negative&clusters=8"): (200, DIFF),
    ("GET", "/v1/review?limit=20"): (
        200,
        {"items": [{"score": 0.123, "prediction_id": "p7", "text": "so-so"}]},
    ),
    ("GET", "/v1/topics?topics=12"): (200, {"topics": [TOPIC]}),
    ("GET", "/v1/drift?limit=10"): (200, DRIFT),
    ("GET", "/v1/models"): (200, {"items": [{"name": "sentiment"}]}),
    ("POST", "/v1/models/sentiment/versions/3/evaluate"): (202, EVALUATION | {"state": "running"}),
    ("POST", "/v1/models/sentiment/versions/4/evaluate"): (202, EVALUATION | {"state": "running"}),
    ("GET", "/v1/models/sentiment/versions/3"): (200, VERSION),
    ("GET", "/v1/models/sentiment/versions/4"): (
        200,
        VERSION | {"evaluations": [EVALUATION | {"state": "failed", "reason": "it raises", "report": None}]},
    ),
    ("POST", "/v1/models/sentiment/versions/3/promote"): (200, MOVED),
    ("POST", "/v1/models/sentiment/versions/4/promote"): (
        409,
        {"title": "Promotion refused", "detail": "a gate failed: the error is too large"},
    ),
    ("POST", "/v1/models/sentiment/rollback"): (200, MOVED | {"version": "2", "report": None}),
    ("GET", "/v1/models/sentiment/history?limit=50"): (200, {"items": [REIGN], "next_cursor": None}),
    ("GET", "/v1/models/sentiment/champion"): (200, REIGN),
    ("GET", "/v1/models/sentiment/champion?at=2026-01-31T12%3A00%3A00Z"): (
        404,
        {"title": "Not found", "detail": "it had none"},
    ),
    ("GET", "/v1/audit?limit=50"): (200, {"items": [ENTRY], "next_cursor": "7"}),
    ("GET", "/v1/audit?action=user.create&subject=u1&limit=2&cursor=7"): (
        200,
        {"items": [ENTRY], "next_cursor": None},
    ),
    ("POST", "/v1/keys"): (201, {"id": "k1", "key": "vk_secret"}),
    ("GET", "/v1/keys"): (200, {"items": [{"id": "k1", "name": "nightly", "role": "client"}]}),
    ("DELETE", "/v1/keys/k1"): (204, None),
    ("GET", f"/v1/users/{ADA['id']}"): (200, ADA),
    ("GET", "/v1/users?limit=50"): (200, {"items": [ADAM, ADA], "next_cursor": "c1"}),
    ("GET", "/v1/users?name=ad&limit=1&cursor=c1"): (200, {"items": [ADA], "next_cursor": None}),
    ("GET", "/v1/users?name=ADA&limit=200"): (200, {"items": [ADAM], "next_cursor": "c1"}),
    ("GET", "/v1/users?name=ADA&limit=200&cursor=c1"): (200, {"items": [ADA], "next_cursor": None}),
    ("GET", "/v1/users?name=ad&limit=200"): (200, {"items": [ADAM, ADA], "next_cursor": None}),
    ("DELETE", f"/v1/users/{ADA['id']}/data"): (200, {"kind": "user", "erased": {"predictions": 3}}),
    ("DELETE", "/v1/texts/t1"): (200, {"kind": "text", "erased": {"predictions": 1}}),
    ("POST", "/v1/users"): (409, {"title": "Conflict", "detail": "taken:\nchoose another"}),
}


SPACE = {
    "name": "next",
    "state": "building",
    "answers": False,
    "vectors": 250,
    "share": 0.25,
    "pace": 12.345,
    "seconds_left": 5400.0,
    "begun_at": "now",
    "live_at": None,
    "reason": None,
}
ANSWERS |= {
    ("GET", "/v1/spaces"): (200, {"items": [SPACE]}),
    ("POST", "/v1/spaces"): (202, SPACE),
    ("POST", "/v1/spaces/next/switch"): (409, {"title": "Conflict", "detail": "750 texts lack a vector"}),
    ("DELETE", "/v1/spaces/next"): (202, SPACE | {"state": "leaving", "seconds_left": None}),
}


class Platform:
    """A server on loopback that answers from a table and keeps the requests."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any, str | None]] = []
        platform = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(length)) if length else None
                platform.asked.append((self.command, self.path, body, self.headers.get("Authorization")))
                status, content = ANSWERS.get((self.command, self.path), (404, {"title": "Not Found"}))
                encoded = b"" if content is None else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(encoded)))
                self.end_headers()
                self.wfile.write(encoded)

            do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Platform]:
    for name in Settings.model_fields:
        monkeypatch.delenv(variable(name), raising=False)
    monkeypatch.setenv("VALENCE_HOME", str(tmp_path))
    platform = Platform()
    thread = Thread(target=platform.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("VALENCE_URL", platform.url)
    yield platform
    platform.server.shutdown()
    thread.join()
    platform.server.server_close()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["valence", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def test_one_text_is_predicted_alone(platform: Platform, run: Any) -> None:
    code, out, _ = run("predict", "so good", "--version", "2", "--key", "vk_mine")
    assert code == 0
    assert "positive" in out
    assert platform.asked == [("POST", "/v1/predict", {"text": "so good", "version": "2"}, "Bearer vk_mine")]


@pytest.mark.usefixtures("platform")
def test_a_text_that_the_version_does_not_know_is_shown_as_such(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = ("POST", "/v1/predict")
    status, answer = ANSWERS[route]
    monkeypatch.setitem(ANSWERS, route, (status, answer | {"language": "de", "supported": False}))
    out = run("predict", "sehr gut")[1].splitlines()
    assert out[0].split()[:4] == ["sentiment", "confidence", "language", "supported"]
    assert out[1].split()[2:4] == ["de", "no"]
    monkeypatch.setitem(ANSWERS, route, (status, answer | {"language": "en", "supported": True}))
    assert "supported" not in run("predict", "so good")[1]


def test_several_texts_are_one_batch_and_json_is_the_answer_itself(platform: Platform, run: Any) -> None:
    code, out, _ = run("predict", "one", "two", "--json")
    assert code == 0
    assert json.loads(out) == ANSWERS["POST", "/v1/predict/batch"][1]
    assert platform.asked[0][2] == {"texts": ["one", "two"]}


def test_filters_of_a_search_travel_together(platform: Platform, run: Any) -> None:
    code, _, _ = run("similar", "good", "-k", "3", "--sentiment", "positive", "--unjudged", "--exact")
    assert code == 0
    wanted = {"sentiment": "positive", "has_feedback": False}
    assert platform.asked[0][2] == {"text": "good", "k": 3, "filters": wanted, "exact": True}


def test_a_time_travels_as_it_is_written(platform: Platform, run: Any) -> None:
    assert run("similar", "good", "--since", "-24h", "--until", "yesterday")[0] == 0
    assert platform.asked[0][2]["filters"] == {"since": "-24h", "until": "yesterday"}


def test_stored_text_sends_no_control_sequence_to_the_terminal(platform: Platform, run: Any) -> None:
    _, out, _ = run("similar", "good")
    assert "\x1b" not in out
    assert "good" in out


# What a terminal obeys: C0, C1, and marks that change the order; then letters that stay.
WILD = '\x1b[31m \x7f \x9b31m \x85 \u2028 \u202e \ud800 \U000e0001 \r\n " \\\\ é 日 👍'


@pytest.mark.usefixtures("platform")
def test_json_is_valid_and_sends_no_control_sequence_to_the_terminal(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"results": [NEIGHBOUR | {"text": WILD}], "exact": True}
    monkeypatch.setitem(ANSWERS, ("POST", "/v1/similar"), (200, found))
    _, out, _ = run("similar", "good", "--json")
    assert json.loads(out) == found
    assert all(line.isprintable() for line in out.split("\n"))
    assert "é 日 👍" in out


@pytest.mark.usefixtures("platform")
def test_an_error_sends_no_control_sequence_to_the_terminal(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = {
        "title": "Odd\x9b31m",
        "detail": "\x1b[31m\u202egone",
        "errors": [{"loc": ["\x9b"], "msg": "\x07"}],
    }
    for refusal in (problem, problem | {"errors": []}):
        monkeypatch.setitem(ANSWERS, ("POST", "/v1/similar"), (422, refusal))
        code, _, err = run("similar", "good")
        assert (code, err.count("\n")) == (1, 1)
        assert err.removesuffix("\n").isprintable()
        assert "Odd" in err


@pytest.mark.usefixtures("platform")
def test_a_table_cuts_long_texts_and_pads_no_last_cell(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [NEIGHBOUR | {"text": "b" * 20_000}, NEIGHBOUR]
    monkeypatch.setitem(ANSWERS, ("POST", "/v1/similar"), (200, {"results": found, "exact": True}))
    _, printed, _ = run("similar", "good")
    lines = printed.splitlines()
    assert lines[1].endswith("b" * 200 + "… (20,000 characters)")
    assert [line for line in lines if line != line.rstrip()] == []
    assert "b" * 20_000 in run("similar", "good", "--json")[1]


def test_the_release_is_printed_with_its_revision(run: Any) -> None:
    assert run("--version")[1].startswith("0.1.0 (")


def test_search_for_nothing_is_wrong_usage(platform: Platform, run: Any) -> None:
    assert run("similar")[0] == 2
    assert run("similar", "text", "--prediction", "p1")[0] == 2
    assert "or --keywords WORDS" in " ".join(run("similar")[2].replace("│", " ").split())
    assert platform.asked == []


def test_examples_and_words_travel_with_a_search(platform: Platform, run: Any) -> None:
    code, _, _ = run("similar", "--like", "p1", "--like", "p2", "--unlike", "p3", "--keywords", "a or b")
    assert code == 0
    assert platform.asked[0][2] == {
        "like": [{"prediction_id": "p1"}, {"prediction_id": "p2"}],
        "unlike": [{"prediction_id": "p3"}],
        "keywords": "a or b",
        "k": 5,
    }
    assert run("similar", "--unlike", "p3")[0] == 2


def test_a_search_by_words_alone_prints_no_similarity(
    platform: Platform, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"results": [{**NEIGHBOUR, "similarity": None}], "exact": True, "complete": True}
    monkeypatch.setitem(ANSWERS, ("POST", "/v1/similar"), (200, found))
    code, out, _ = run("similar", "--keywords", "good")
    assert (code, "good" in out, "similarity" in out) == (0, True, False)
    assert platform.asked[0][2] == {"keywords": "good", "k": 5}


def test_near_duplicates_of_a_text_or_a_prediction(platform: Platform, run: Any) -> None:
    assert "good" in run("duplicates", "so good", "--min-similarity", "0.9")[1]
    assert run("duplicates", "--prediction", "p1")[0] == 0
    assert run("duplicates")[0] == 2
    assert platform.asked[0][2] == {"text": "so good", "min_similarity": 0.9, "k": 100}
    assert platform.asked[1][2] == {"prediction_id": "p1", "k": 100}


def test_an_explained_prediction_shows_the_second_opinion_or_that_there_is_none(
    platform: Platform, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for opinion, shown in ((OPINION, ["0.25", "negative"]), (None, ["-", "-"])):
        monkeypatch.setitem(ANSWERS, ("POST", "/v1/predict"), (201, PREDICTION | {"second_opinion": opinion}))
        code, out, _ = run("predict", "so good", "--explain")
        assert (code, out.split()[-2:]) == (0, shown)
    assert platform.asked[0][2] == {"text": "so good", "explain": True}
    assert run("predict", "one", "two", "--explain")[0] == 2


MEMORY: dict[tuple[str, ...], list[str]] = {
    ("second-opinion", "p1"): ["agreement  0.25", "suggests   negative", "so bad"],
    ("corrections", "p1"): ["positive", "negative", "so bad, too", "p1"],
    ("diff", "2", "3", "--was", "negative"): [
        "30 of 1,030 texts differ",
        "v2 \\ v3   negative  neutral  positive",
        "negative  10        9        21",
        "bad, not",
        "negative → positive",
        "not bad",
    ],
    ("review",): ["0.123", "p7", "so-so"],
    ("topics",): ["battery", "positive 9", "v2 3/4", "it lasts"],
    ("drift",): ["100 against 700", "0.002", "yes", "unheard of"],
}


def test_a_drift_without_a_reference_says_so(
    platform: Platform, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = DRIFT | {
        "reference": {"sampled": 0},
        "embeddings": None,
        "reason": "the reference has no texts",
    }
    monkeypatch.setitem(ANSWERS, ("GET", "/v1/drift?limit=10"), (200, lacking))
    code, out, _ = run("drift")
    assert (code, out.splitlines()) == (
        0,
        ["texts         100 against 0", "not compared  the reference has no texts"],
    )
    assert json.loads(run("drift", "--json")[1]) == lacking


@pytest.mark.parametrize("arguments", MEMORY)
def test_what_the_memory_is_good_for_is_shown(
    platform: Platform, run: Any, arguments: tuple[str, ...]
) -> None:
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    for part in MEMORY[arguments]:
        assert part in out
    code, out, _ = run(*arguments, "--json")
    assert json.loads(out) == ANSWERS["GET", platform.asked[-1][1]][1]


def test_feedback_needs_a_judgement(platform: Platform, run: Any) -> None:
    assert run("feedback", "p1")[0] == 2
    assert run("feedback", "p1", "--wrong", "--label", "neutral")[0] == 0
    assert platform.asked[0][2] == {"prediction_id": "p1", "is_correct": False, "label": "neutral"}


def test_refusal_is_one_line_and_exit_code_1(platform: Platform, run: Any) -> None:
    code, out, err = run("users", "create", "ada", "ada@example.org")
    assert (code, out, err) == (1, "", "valence: 409 Conflict: taken: choose another\n")


def test_users_are_listed_by_the_beginning_of_their_name_in_pages(platform: Platform, run: Any) -> None:
    code, out, err = run("users", "list")
    assert (code, "adam" in out, ADA["id"] in out, err) == (0, True, True, "more users: --cursor c1\n")
    code, out, err = run("users", "list", "--name", "ad", "--limit", "1", "--cursor", "c1", "--json")
    assert (code, json.loads(out)["items"], err) == (0, [ADA], "")


def test_a_user_is_found_by_id_or_by_the_whole_name(platform: Platform, run: Any) -> None:
    for user in (ADA["id"], "ADA"):
        assert json.loads(run("users", "show", user, "--json")[1]) == ADA
    code, out, err = run("users", "show", "ad")
    assert (code, out) == (1, "")
    assert err == "valence: there is no user 'ad': `valence users list` shows who there is\n"
    assert run("keys", "create", "own", "--user", "ADA")[0] == 0
    assert platform.asked[-1][2] == {"name": "own", "role": "client", "user_id": ADA["id"]}


def test_keys_are_made_listed_and_revoked(platform: Platform, run: Any) -> None:
    assert "vk_secret" in run("keys", "create", "batch job", "--role", "engineer")[1]
    assert "k1" in run("keys", "list")[1]
    assert run("keys", "revoke", "k1")[0] == 0
    assert platform.asked[0][2] == {"name": "batch job", "role": "engineer"}


def test_nothing_is_erased_without_confirmation_and_the_receipt_is_printed(
    platform: Platform, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    code, _, err = run("users", "erase", "ADA")
    assert (code, f"Erase the data of user Ada ({ADA['id']}) permanently?" in err) == (1, True)
    assert [method for method, *_ in platform.asked] == ["GET", "GET"]
    assert "predictions 3" in run("users", "erase", ADA["id"], "--yes")[1]
    assert "predictions 3" in run("users", "erase", "ADA", "--yes")[1]
    assert json.loads(run("texts", "erase", "t1", "--yes", "--json")[1])["kind"] == "text"


def test_a_backup_that_is_not_there_is_one_line_and_a_time_without_zone_wrong_usage(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALENCE_HOME", str(tmp_path / "home"))
    code, out, err = run("db", "restore", str(tmp_path / "none.backup"))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "none.backup" in err
    assert run("db", "restore", "any", "--until", "2026-01-31T12:00:00")[0] == 2
    assert run("db", "restore", "any", "--until", "last week")[0] == 2
    assert run("db", "restore", str(tmp_path / "none.backup"), "--until", "24h")[0] == 1


def test_a_text_key_is_made_as_the_setting_takes_it(run: Any) -> None:
    code, out, err = run("db", "key", "--id", "spring")
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert Cipher.parse(out).sealing_key == "spring"
    assert Cipher.parse(run("db", "key")[1]).sealing_key == f"{datetime.now(UTC):%Y-%m-%d}"
    code, out, err = run("db", "key", "--id", "a,b")
    assert (code, out, err.count("\n")) == (1, "", 1)


def test_a_version_is_evaluated_waited_for_and_shown_with_its_gates(platform: Platform, run: Any) -> None:
    code, out, _ = run("models", "evaluate", "3")
    assert (code, "running" in out) == (0, True)
    code, out, _ = run("models", "evaluate", "3", "--wait")
    assert code == 0
    assert "0.7651 (0.7470 to 0.7812)" in out
    assert "236 of 1000" in out
    assert "the error is too large" in out
    assert json.loads(run("models", "show", "--version", "3", "--json")[1]) == VERSION
    code, out, err = run("models", "evaluate", "4", "--wait")
    assert (code, out, err) == (1, "", "valence: version 4 has no report: it raises\n")


def test_only_a_fault_is_shown_as_failed(
    run: Any, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {"ready": None, "absent": "no replica runs its encoder", "failed": "its files are damaged"}
    versions = [
        VERSION | {"version": str(number), "state": state, "reason": reason, "encoder": None, "metrics": {}}
        for number, (state, reason) in enumerate(states.items(), start=1)
    ]
    answer = {"name": "sentiment", "versions": versions}
    monkeypatch.setitem(ANSWERS, ("GET", "/v1/models/sentiment"), (200, answer))
    monkeypatch.setitem(ANSWERS, ("GET", "/v1/models/sentiment/versions/2"), (200, versions[1]))
    code, out, _ = run("models", "show")
    assert (code, out.count("spring")) == (0, 3)
    ready, asleep, failed = out.splitlines()[1:]
    assert "ready" in ready
    assert "asleep: starts when asked" in asleep
    assert "failed: its files are damaged" in failed
    shown = run("models", "show", "sentiment", "2")[1]
    assert "asleep: starts when asked" in shown
    assert "Trained in March." in shown


def test_champions_are_made_unmade_and_remembered(platform: Platform, run: Any) -> None:
    assert run("models", "promote", "3")[0] == 0
    assert run("models", "promote", "3", "--force", "--reason", "an incident")[0] == 0
    assert [result[2] for result in platform.asked] == [{}, {"force": True, "reason": "an incident"}]
    code, _, err = run("models", "promote", "4")
    assert (code, err) == (1, "valence: 409 Promotion refused: a gate failed: the error is too large\n")
    assert "previous  2" in run("models", "rollback", "--reason", "worse")[1]
    shown = run("models", "history")[1]
    assert all(word in shown for word in ("better", "nightly", "gated"))
    assert json.loads(run("models", "history", "--json")[1])["items"] == [REIGN]


def test_a_history_shows_short_local_times_and_what_a_listing_of_keys_would_name(
    platform: Platform, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = "0195d2a1-7e0b-7c11-8c9a-000000000001"
    times = {"from": "2026-01-31T12:00:00.123456Z", "to": "2026-02-01T00:00:00Z"}
    item = REIGN | times | {"by": actor, "gated": False, "forced": True}
    history = {"items": [item, item | {"by": None, "forced": False}], "next_cursor": None}
    monkeypatch.setitem(ANSWERS, ("GET", "/v1/models/sentiment/history?limit=50"), (200, history))
    monkeypatch.setitem(ANSWERS, ("GET", "/v1/keys"), (403, {"title": "Forbidden"}))
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        _, out, err = run("models", "history")
    finally:
        monkeypatch.undo()
        time.tzset()
    forced, free = out.splitlines()[1:]
    assert forced.split() == [
        *("3", "2026-01-31", "21:00", "2026-02-01", "09:00", "promote", "forced", "0195d2a1", "better"),
    ]
    assert free.split()[-3:] == ["-", "-", "better"]
    assert err == ""


class Terminal(io.StringIO):
    """A person at a terminal, and what they type."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("command", "question"),
    [
        (("models", "promote", "3"), "Promote (champion 2 → 3)? Version 3 then answers all requests"),
        (("models", "rollback"), "Roll back? Champion 2 of 'sentiment' gives way to the one before it"),
        (
            ("experiments", "change", "e1", "--share", "0.1"),
            "begins a new stage, whose verdict starts without",
        ),
    ],
)
def test_a_person_is_asked_before_the_champion_or_a_stage_changes_and_a_script_is_not(
    platform: Platform,
    run: Any,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    question: str,
) -> None:
    monkeypatch.setitem(ANSWERS, ("GET", "/v1/models/sentiment/champion"), (200, REIGN | {"version": "2"}))
    changes = lambda: [method for method, *_ in platform.asked if method != "GET"]  # noqa: E731
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    code, _, err = run(*command)
    assert (code, question in err, changes()) == (1, True, [])
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    run(*command)
    assert len(changes()) == 1
    for script in (Terminal(""), io.StringIO("")):
        monkeypatch.setattr("sys.stdin", script)
        _, _, err = run(*command, *(["--yes"] if script.isatty() else []))
        assert question not in err
    assert len(changes()) == 3


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("feedback", "p1"), "say whether the prediction was right"),
        (("models", "promote", "3", "--force"), "needs a --reason"),
        (("models", "promote", "3", "--force", "--reason", " "), "needs a --reason"),
        (
            ("experiments", "start", "3", "--share", "0.1", "--policy", "promote"),
            "neither a file nor a JSON object",
        ),
        (("experiments", "start", "3", "--share", "0.1", "--policy", "{"), "the policy isn't JSON"),
        (("duplicates",), "give a text, or --prediction ID"),
    ],
)
def test_wrong_usage_says_what_is_missing_before_anything_is_sent(
    platform: Platform, run: Any, command: tuple[str, ...], words: str
) -> None:
    code, out, err = run(*command)
    assert (code, out, platform.asked) == (2, "", [])
    assert words in " ".join(err.replace("│", " ").split())


@pytest.mark.usefixtures("platform")
def test_what_is_no_url_is_told_as_that(run: Any) -> None:
    code, _, err = run("predict", "hi", "--url", "nonsense")
    assert (code, err) == (1, "valence: 'nonsense' is no URL: write it as http://127.0.0.1:8000\n")


def test_down_names_the_home_in_which_nothing_runs(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALENCE_HOME", str(tmp_path))
    assert run("down")[1] == f"no platform runs in {tmp_path}; VALENCE_HOME names another home\n"


def test_a_change_of_nothing_is_wrong_usage(platform: Platform, run: Any) -> None:
    assert run("experiments", "change", "e1")[0] == 2
    assert platform.asked == []


def test_the_champion_of_a_moment_is_shown(platform: Platform, run: Any) -> None:
    code, out, _ = run("models", "champion")
    assert (code, "promote" in out, "better" in out) == (0, True, True)
    assert json.loads(run("models", "champion", "--json")[1])["version"] == "3"
    code, _, err = run("models", "champion", "--at", "2026-01-31T12:00:00Z")
    assert (code, err) == (1, "valence: 404 Not found: it had none\n")


def test_the_audit_log_is_listed_by_filters_in_pages(platform: Platform, run: Any) -> None:
    code, out, err = run("audit")
    assert (code, "champion.follow" in out, "to 3" in out) == (0, True, True)
    assert err == "more entries: --cursor 7\n"
    filters = ("--action", "user.create", "--subject", "u1", "--limit", "2", "--cursor", "7")
    code, _, err = run("audit", *filters)
    assert (code, err) == (0, "")
    assert json.loads(run("audit", "--json")[1]) == {"items": [ENTRY], "next_cursor": "7"}


def test_the_log_is_shown_as_people_read_it_or_as_it_is(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALENCE_HOME", str(tmp_path))
    code, out, err = run("logs")
    assert (code, out, "no platform has logged here" in err) == (1, "", True)
    line = {"process": "ingress", "pid": 7, "event": "batch.failed", "requests": ["r1"], "level": "warning"}
    line |= {"timestamp": "2026-01-01T12:00:00Z", "exception": "Traceback\nBoom\x1b[31m"}
    (tmp_path / "logs").mkdir()
    entries = [line | {"event": f"early.{number}", "level": "info"} for number in range(3)]
    text = "".join(json.dumps(each) + "\n" for each in (*entries, line))
    (tmp_path / "logs" / "platform.log").write_text(text)
    code, out, err = run("logs", "--level", "warning")
    assert (code, err) == (0, "")
    assert "warning  ingress     batch.failed  requests=r1\n    Traceback\n    Boom·[31m\n" in out
    assert "early" not in out
    assert run("logs", "-n", "2", "--json")[1] == "".join(text.splitlines(keepends=True)[-2:])
    assert run("logs", "--since", "2026-01-01T12:00:00Z", "-n", "1")[1].count("early") == 3
    assert run("logs", "--since", "yesterday")[1] == ""
    assert run("logs", "--since", "soon")[0] == 2


def test_spaces_are_built_listed_switched_to_and_removed(
    platform: Platform, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "90 min" in run("spaces", "build", "next")[1]
    assert platform.asked[-1][:3] == ("POST", "/v1/spaces", {"name": "next"})
    code, out, _ = run("spaces", "list")
    assert code == 0
    assert "25.0 %" in out
    assert "12.3" in out
    code, _, err = run("spaces", "switch", "next")
    assert (code, err) == (1, "valence: 409 Conflict: 750 texts lack a vector\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert run("spaces", "remove", "next")[0] == 1
    assert platform.asked[-1][0] == "POST"
    assert "leaving" in run("spaces", "remove", "next", "--yes")[1]


def test_admin_key_of_the_home_goes_to_no_named_url(platform: Platform, run: Any, tmp_path: Path) -> None:
    (tmp_path / "admin.key").write_text("vk_admin\n")
    run("models", "list")
    assert platform.asked[0][3] is None


def test_admin_key_of_the_home_goes_to_this_machines_platform(
    platform: Platform, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "admin.key").write_text("vk_admin\n")
    monkeypatch.delenv("VALENCE_URL")
    monkeypatch.setenv("VALENCE_PORT", str(platform.server.server_port))
    assert run("models", "list")[0] == 0
    assert platform.asked[0][3] == "Bearer vk_admin"


def test_malformed_setting_is_named(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALENCE_PORT", "many")
    code, _, err = run("settings")
    assert code == 1
    assert err.startswith("valence: VALENCE_PORT: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "url", ["mysql://db/hush", "postgresql://me:hush%zz@db/x", "postgresql://me:hush@db?no=1"]
)
def test_a_url_that_names_no_postgresql_is_named_by_its_variable_and_not_shown(
    run: Any, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("DATABASE_READ_URL", url)
    code, _, err = run("db", "current")
    assert code == 1
    assert err.startswith("valence: DATABASE_READ_URL: ")
    assert err.count("\n") == 1
    assert "hush" not in err


@pytest.mark.parametrize(
    "command", [("current",), ("downgrade", "base", "--yes"), ("scrub", "--yes"), ("backup",)]
)
def test_a_home_without_a_database_gets_none_from_a_query(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("VALENCE_HOME", str(tmp_path))
    code, _, err = run("db", *command)
    assert (code, err) == (1, f"valence: {tmp_path} holds no database: set VALENCE_HOME, or DATABASE_URL\n")
    assert list(tmp_path.iterdir()) == []


def test_every_setting_is_listed_and_no_secret_shown(
    platform: Platform, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hush@db/valence")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hush@mlflow")
    monkeypatch.setenv("VALENCE_API_KEY", "vk_hush")
    monkeypatch.setenv("VALENCE_TEXT_KEYS", "one:hush")
    code, out, _ = run("settings", "--json")
    items = json.loads(out)["items"]
    assert code == 0
    assert {item["name"] for item in items} == {variable(name) for name in Settings.model_fields}
    assert all(item["meaning"] for item in items)
    assert "hush" not in out


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, contextlib\nfrom serving.cli import main\nsys.argv = ['valence', '--help']\n"
        "with contextlib.suppress(SystemExit): main()\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    for heavy in ("pydantic", "httpx", "sqlalchemy", "psycopg", "ray", "mlflow", "torch", "numpy", "fastapi"):
        assert f"'{heavy}'" not in done.stderr


def test_cell_reads_as_a_person_would() -> None:
    assert cell(None) == "-"
    assert cell(True) == "yes"
    assert cell({"accuracy": 0.71234}) == "accuracy 0.7123"
    assert cell(["champion", "latest"]) == "champion, latest"
    assert cell("a\x1b]0;title\x07b") == "a\N{MIDDLE DOT}]0;title\N{MIDDLE DOT}b"


def test_every_package_of_the_tree_is_found_for_the_wheel() -> None:
    find = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert find == {"include": ["db*", "registry*", "serving*"], "namespaces": False}
    for top in ("serving", "registry", "db"):
        for folder in {file.parent for file in (ROOT / top).rglob("*.py")}:
            assert (folder / "__init__.py").exists(), folder


def test_settings_are_found_by_topic_name_or_meaning_and_each_has_a_topic(
    monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    code, out, _ = run("settings", "--json")
    everything = json.loads(out)["items"]
    assert code == 0
    assert len(everything) == len(Settings.model_fields)
    assert {row["topic"] for row in everything} == set(_TOPICS.values())
    assert _TOPICS.keys() <= Settings.model_fields.keys()
    for term, name in (
        ("BACKUPS", "VALENCE_WAL_ARCHIVE"),
        ("queue_texts", "VALENCE_QUEUE_TEXTS"),
        ("host", "VALENCE_HOST"),
    ):
        found = [row["name"] for row in json.loads(run("settings", term, "--json")[1])["items"]]
        assert name in found, term
        assert len(found) < len(everything), term
    shown = run("settings", "gate_")[1]
    assert shown.count("gates") == 1
    code, out, err = run("settings", "no such thing")
    assert (code, out) == (1, "")
    assert "`valence settings` lists them all" in err


ODD_LOCALES = ({"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}, {"LANG": "de_DE@euro", "PYTHONUTF8": "0"})


@pytest.mark.parametrize("locale", ODD_LOCALES)
def test_texts_are_utf8_whatever_the_locale(
    platform: Platform, locale: dict[str, str], tmp_path: Path
) -> None:
    home = tmp_path / "ein Büro"
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))
    }
    environment = inherited | locale | {"VALENCE_URL": platform.url, "VALENCE_HOME": str(home)}
    valence = Path(sys.executable).with_name("valence")

    def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [valence, *arguments], env=environment, input=stdin, capture_output=True, check=False
        )

    for done in (run("predict", "Grüße 👍", "--json"), run("predict", "-", stdin="Grüße 👍".encode())):
        assert done.returncode == 0, done.stderr
        assert platform.asked.pop()[2] == {"text": "Grüße 👍"}
    status = run("status")
    assert (status.returncode, "ein Büro" in status.stdout.decode()) == (0, True), status.stderr
    for refused in (run("predict", os.fsdecode(b"Gr\xfc\xdfe")), run("predict", "-", stdin=b"Gr\xfc\xdfe")):
        assert refused.returncode == 2
        assert b"UTF-8" in refused.stderr
        assert b"Traceback" not in refused.stderr
