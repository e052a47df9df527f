"""How broad the tests that draw or simulate are: in full by `make test-full`, a part of it in every other run."""

CI, FULL = "ci", "full"
_PART = 4
_LEAST = 10

_full = False


def choose(*, full: bool) -> None:
    """Set the breadth; test modules read it as they are imported."""
    global _full
    _full = full


def examples(number: int, *, full: bool | None = None) -> int:
    """Return how many of the examples of a property test to draw."""
    return number if (_full if full is None else full) else max(_LEAST, number // _PART)


def chosen(quick: int, full: int) -> int:
    """Return the size of what can't be cut to a fixed part, by the tier that runs."""
    return full if _full else quick
