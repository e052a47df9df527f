"""The databases that the settings name, and the connections to them."""

import pytest
from pydantic import SecretStr

from db.core.cipher import BadTextKeys
from serving.core.connections import build_database
from serving.settings import Settings

pytestmark = pytest.mark.anyio

POOLED, DIRECT = "postgresql://app@pooler/valence", "postgresql://app@server/valence"


@pytest.mark.parametrize(
    ("url", "direct", "schema"),
    [(None, None, None), (POOLED, None, POOLED), (POOLED, DIRECT, DIRECT), (None, DIRECT, None)],
)
def test_what_needs_a_session_of_its_own_goes_past_the_pooler(
    monkeypatch: pytest.MonkeyPatch, url: str | None, direct: str | None, schema: str | None
) -> None:
    for name, value in (("DATABASE_URL", url), ("DATABASE_DIRECT_URL", direct)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert Settings().schema_url == schema


@pytest.mark.parametrize(("said", "known"), [("auto", None), ("on", True), ("off", False)])
async def test_every_url_reaches_the_database(said: str, known: bool | None) -> None:
    settings = Settings(
        database_url=SecretStr(POOLED),
        database_read_url=SecretStr("postgresql://reader@replica/valence"),
        database_direct_url=SecretStr(DIRECT),
        database_pooler=said,
        installation_key=SecretStr("ab" * 32),
    )
    database = build_database(settings)
    assert (database._url, database._direct_url) == (POOLED, DIRECT)
    assert database._read_url == "postgresql://reader@replica/valence"
    assert database._pooler is known
    await database.close()


async def test_the_keys_of_texts_reach_the_database_and_wrong_ones_do_not() -> None:
    given = f"one:{'MTEx' * 10}MTE="
    url, key = SecretStr(DIRECT), SecretStr("ab" * 32)
    database = build_database(Settings(database_url=url, installation_key=key, text_keys=SecretStr(given)))
    assert database.cipher.sealing_key == "one"
    await database.close()
    for nothing in (None, SecretStr("")):
        database = build_database(Settings(database_url=url, installation_key=key, text_keys=nothing))
        assert not database.cipher.has_keys
        await database.close()
    with pytest.raises(BadTextKeys, match="VALENCE_TEXT_KEYS, key 1"):
        build_database(Settings(database_url=url, installation_key=key, text_keys=SecretStr("hush")))
