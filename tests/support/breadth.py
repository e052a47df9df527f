"""The breadth of property tests and simulations: full in `make test-full`, a part of it in other runs."""

CI, FULL = "ci", "full"
_PART = 4
_LEAST = 10

_full = False


def choose(*, full: bool) -> None:
    """Set the breadth; test modules read it while they are imported."""
    global _full
    _full = full


def examples(number: int, *, full: bool | None = None) -> int:
    """Return how many examples a property test draws."""
    return number if (_full if full is None else full) else max(_LEAST, number // _PART)


def chosen(quick: int, full: int) -> int:
    """Return the size for the tier that runs, for what can't be cut to a fixed part."""
    return full if _full else quick
