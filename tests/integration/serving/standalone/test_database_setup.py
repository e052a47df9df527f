"""The set-up of a database for its first request."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from serving.core.home import Home
from serving.settings import Settings
from serving.standalone.database_setup import set_up_database
from tests.support.postgres import KEY

pytestmark = pytest.mark.anyio


async def test_an_admin_key_that_can_be_guessed_stops_the_start(url: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url=SecretStr(url), installation_key=SecretStr(KEY.hex()))
    file = Home(tmp_path).admin_key
    file.write_text(f"vk_{'0' * 32}_swordfish")
    with pytest.raises(ValueError, match="can be guessed"):
        await set_up_database(settings)
    file.unlink()
    await set_up_database(settings)
    assert file.stat().st_mode & 0o777 == 0o600
