"""Settings that are more than one word."""

import pytest
from pydantic import ValidationError

from serving.settings import Settings


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("", ()),
        ("*", ("*",)),
        ("https://Shop.example.org", ("https://shop.example.org",)),
        (
            "https://shop.example.org, http://localhost:3000,",
            ("https://shop.example.org", "http://localhost:3000"),
        ),
        ("http://[::1]:3000", ("http://[::1]:3000",)),
    ],
)
def test_origins_are_read_from_one_line(
    monkeypatch: pytest.MonkeyPatch, given: str, read: tuple[str, ...]
) -> None:
    monkeypatch.setenv("VALENCE_CORS_ORIGINS", given)
    assert Settings().cors_origins == read


@pytest.mark.parametrize(
    "given", ["shop.example.org", "https://shop.example.org/", "https://*.example.org", "x y"]
)
def test_what_is_no_origin_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("VALENCE_CORS_ORIGINS", given)
    with pytest.raises(ValidationError, match="is no origin: write"):
        Settings()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("fd00::7", "http://[fd00::7]:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://127.0.0.1:8000"),
    ],
)
def test_a_url_holds_an_address_as_it_must_be_written(host: str, url: str) -> None:
    assert Settings(host=host, port=8000).base_url == url
