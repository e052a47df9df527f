"""The public surface changes only on purpose, visible in the diff of one file."""

from tests.support.surface import FILE, surface


def test_the_public_surface_is_what_it_was() -> None:
    written = FILE.read_text().splitlines()
    result = surface()
    gone = sorted(set(written) - set(result))
    new = sorted(set(result) - set(written))
    assert (gone, new) == ([], []), "if that is meant: python -m tests.support.surface"
