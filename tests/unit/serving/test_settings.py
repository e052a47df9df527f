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
