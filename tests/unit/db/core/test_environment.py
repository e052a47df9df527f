"""The environment of programs that need no secret."""

import pytest

from db.core.environment import forget_libpq_variables, select_environment

_SECRETS = {
    "VALENCE_TEXT_KEYS": "a:secret",
    "VALENCE_TOKEN_KEYS": "secret",
    "VALENCE_API_KEY": "vk_secret",
    "DATABASE_URL": "postgresql://me:secret@db/v",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "RAY_AUTH_TOKEN": "secret",
    "SOMETHING_OF_TOMORROW": "secret",
}


def test_a_program_inherits_what_it_is_given_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (_SECRETS | {"PATH": "/bin", "VALENCE_HOME": "/srv/v"}).items():
        monkeypatch.setenv(name, value)
    chosen = select_environment("VALENCE_HOME")
    assert (chosen["PATH"], chosen["VALENCE_HOME"]) == ("/bin", "/srv/v")
    assert not chosen.keys() & _SECRETS.keys()
    assert select_environment(prefixes=("AWS_",))["AWS_SECRET_ACCESS_KEY"] == "secret"


def test_variables_of_libpq_are_for_a_database_that_is_named() -> None:
    ours = {"PGPORT": "5433", "PGHOSTADDR": "10.0.0.1", "PATH": "/bin"}
    forget_libpq_variables(ours)
    assert ours == {"PATH": "/bin"}
    theirs = {"PGSSLMODE": "require", "DATABASE_URL": "postgresql://db/v"}
    forget_libpq_variables(theirs)
    assert theirs["PGSSLMODE"] == "require"
