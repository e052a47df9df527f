"""The authorisation matrix of the docs is what the routes do."""

from tests.support.authorisation import FILE, page


def test_the_page_says_what_every_route_does_and_rows_of_others_are_shown_to_no_client() -> None:
    written = FILE.read_text(encoding="utf-8")
    assert written == page(), "if that is meant: python -m tests.support.authorisation"
    rows = [line.split(" | ") for line in written.splitlines() if line.startswith("| `")]
    assert rows
    for route, *entries in rows:
        assert entries[1] != "all", route
        allowed = [entry.strip(" |") != "–" for entry in entries]
        assert allowed == sorted(allowed), f"{route}: a larger role may less"
