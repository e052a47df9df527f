"""Texts that the built-in models don't know: the answer says so, and they are no one's duplicates."""

from tests.support.live import LivePlatform

ENGLISH = "The battery lasts for days and I would buy it again."
GERMAN = "Der Akku hält tagelang und ich würde es wieder kaufen."
JAPANESE = "バッテリーの減りが早い"
STRANGE = ["👎👎👎", "👍", "🇩🇪🇫🇷", "x" * 300]


def test_what_the_models_dont_know_is_said_and_stays_out_of_duplicates(live: LivePlatform) -> None:
    texts = [ENGLISH, GERMAN, JAPANESE, "ok", *STRANGE]
    with live.client() as client:
        for version in (None, "1"):
            answer = client.post("/v1/predict/batch", json={"texts": texts, "version": version})
            made = answer.json()["predictions"]
            assert [each["language"] for each in made] == ["en", "de", "ja", "und", *["und"] * 4]
            assert [each["supported"] for each in made] == [True, False, False, True, *[False] * 4]
            assert ["mostly_unknown" in each for each in made[3:]] == [False, *[True] * 4]
        found = client.post("/v1/duplicates", json={"text": "🙈", "min_similarity": -1}).json()["results"]
        strange = client.post("/v1/duplicates", json={"prediction_id": made[-1]["id"]}).json()["results"]
        models = client.get("/v1/models").json()["items"]
        versions = client.get("/v1/models/sentiment").json()["versions"]
    assert {each["text"] for each in found}.isdisjoint(STRANGE)
    assert strange == []
    assert models == [{"name": "sentiment", "languages": ["en"]}]
    assert [each["languages"] for each in versions] == [["en"]] * len(versions)
