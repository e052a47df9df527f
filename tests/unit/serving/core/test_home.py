"""The secrets of a home."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from serving.core.home import BadKey, Home, read_token_keys
from serving.settings import Settings


def test_a_home_keeps_one_token_key_for_its_owner_alone(tmp_path: Path) -> None:
    first = read_token_keys(Settings(home=tmp_path))
    assert read_token_keys(Settings(home=tmp_path)) == first
    assert Home(tmp_path).token_key.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("ab" * 32 + ", " + "AB" * 32, "a key twice"),
        ("ab" * 31, "31 bytes"),
        ("word", "not hexadecimal"),
        ("ab" * 32 + ",", "0 bytes"),
    ],
)
def test_token_keys_of_another_form_are_refused_by_the_name_of_their_setting(
    tmp_path: Path, given: str, words: str
) -> None:
    with pytest.raises(BadKey, match=f"VALENCE_TOKEN_KEYS.*{words}"):
        read_token_keys(Settings(home=tmp_path, token_keys=SecretStr(given)))
