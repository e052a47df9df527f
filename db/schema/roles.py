"""The roles that a database is used by, each with the least that it needs: owner, application, reader.

Owns their grants, time limits and bounds on connections. Never keeps, shows or sends a password as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from db.core.urls import conninfo
from db.errors import Conflict, SchemaMismatch, translate_driver_errors
from db.schema import versions

_Connection = psycopg.Connection[TupleRow]


class Role(StrEnum):
    """What a role is for."""

    OWNER = "owner"
    APPLICATION = "application"
    READER = "reader"


@dataclass(frozen=True, kw_only=True, slots=True)
class Login:
    """How a role signs in: its name, its password (None: as it is), the most connections it may hold."""

    name: str
    password: str | None = field(default=None, repr=False)
    connections: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsuredRole:
    """A role as it is now; `created`: it wasn't there before. Without a password nobody signs in as it by SCRAM."""

    role: Role
    name: str
    connections: int
    created: bool
    has_password: bool


# Timeouts as PostgreSQL spells them. A session may raise its own, so they bound accidents, not malice.
SETTINGS: Final[Mapping[Role, Mapping[str, str]]] = {
    Role.OWNER: {
        "statement_timeout": "0",
        "lock_timeout": "5s",
        "idle_in_transaction_session_timeout": "10min",
    },
    Role.APPLICATION: {
        "statement_timeout": "30s",
        "lock_timeout": "5s",
        "idle_in_transaction_session_timeout": "60s",
        "client_connection_check_interval": "5s",
    },
    Role.READER: {
        "statement_timeout": "30s",
        "lock_timeout": "5s",
        "idle_in_transaction_session_timeout": "60s",
        "client_connection_check_interval": "5s",
        "default_transaction_read_only": "on",
    },
}
_EVERYTHING: Final[LiteralString] = "SELECT, INSERT, UPDATE, DELETE"
_APPEND: Final[LiteralString] = "SELECT, INSERT"
# What the application may do with tables that aren't simply its own.
_LESS: Final[Mapping[str, LiteralString]] = {"alembic_version": "SELECT", "installation": _APPEND}
# Digests and fingerprints of keys, kept answers: a reader has no use for them.
_HIDDEN: Final = ("api_keys", "idempotency", "installation", "text_keys")

_RELATIONS: Final[LiteralString] = """
    SELECT c.relname, c.relkind,
        EXISTS (SELECT FROM pg_trigger t
            WHERE t.tgrelid = c.oid AND t.tgname = 'append_only' AND t.tgqual IS NULL AND t.tgtype & 16 = 16)
    FROM pg_class c
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p', 'S', 'v', 'm')
        AND c.relowner IN (SELECT relowner FROM pg_class WHERE oid = 'text_inputs'::regclass)
        AND NOT EXISTS (SELECT FROM pg_depend d
            WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('e', 'i', 'a')
            AND (d.deptype = 'e' OR c.relkind = 'S'))
    ORDER BY c.relname"""
_FUNCTIONS: Final[LiteralString] = """
    SELECT p.proname, p.prosecdef FROM pg_proc p
    WHERE p.pronamespace = current_schema()::regnamespace
        AND p.proowner IN (SELECT relowner FROM pg_class WHERE oid = 'text_inputs'::regclass)
        AND NOT EXISTS (SELECT FROM pg_depend d
            WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')"""


def ensure_roles(url: str, logins: Mapping[Role, Login]) -> list[EnsuredRole]:
    """Makes the three roles, or brings them to what they should be; at once, and the same if done again.

    The schema's tables and functions become the owner's. Run it as a superuser, or as the role with CREATEROLE
    that owns them; again after an upgrade, which leaves the application with everything on new tables.

    Raises:
        SchemaMismatch: the schema isn't this release's: upgrade first.
        Conflict: a role of that name may more than any of these should.
        NotPermitted: the role of `url` may not do this.
    """
    with (
        translate_driver_errors(detailed=True),
        psycopg.connect(conninfo(url), prepare_threshold=None) as connection,
    ):
        connection.execute("SET LOCAL lock_timeout = '5s'")
        _require_schema(connection)
        made = [_role(connection, role, logins[role]) for role in Role]
        names = {role: sql.Identifier(logins[role].name) for role in Role}
        _own(connection, names)
        _grant(connection, names)
    return made


def _require_schema(connection: _Connection) -> None:
    found = connection.execute("SELECT to_regclass('alembic_version')").fetchone()
    if found is not None and found[0] is not None:
        found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        if found is not None and versions.is_compatible(found[0]):
            return
    raise SchemaMismatch("the schema isn't this release's: run `valence db upgrade` first")


def _role(connection: _Connection, role: Role, login: Login) -> EnsuredRole:
    found = connection.execute(
        "SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls "
        "FROM pg_roles WHERE rolname = %s",
        (login.name,),
    ).fetchone()
    if found is not None and found[0]:
        raise Conflict(f"the role {login.name} may more than {role} should: choose another name")
    name = sql.Identifier(login.name)
    if found is None:
        _run(connection, "CREATE ROLE {name} LOGIN", name=name)
        # A role that isn't superuser acts for another only as its member.
        if not _is_superuser(connection):
            _run(connection, "GRANT {name} TO CURRENT_USER", name=name)
    _run(
        connection,
        "ALTER ROLE {name} LOGIN CONNECTION LIMIT {limit}",
        name=name,
        limit=sql.Literal(login.connections),
    )
    if login.password is not None:
        # Only the verifier leaves this process, so that no log of the server can hold the password.
        verifier = connection.pgconn.encrypt_password(
            login.password.encode(), login.name.encode(), b"scram-sha-256"
        )
        _run(
            connection,
            "ALTER ROLE {name} PASSWORD {secret}",
            name=name,
            secret=sql.Literal(verifier.decode()),
        )
    for setting, value in SETTINGS[role].items():
        _run(
            connection,
            "ALTER ROLE {name} SET {setting} = {value}",
            name=name,
            setting=sql.Identifier(setting),
            value=sql.Literal(value),
        )
    return EnsuredRole(
        role=role,
        name=login.name,
        connections=login.connections,
        created=found is None,
        has_password=login.password is not None
        or (found is not None and _has_password(connection, login.name)),
    )


def _is_superuser(connection: _Connection) -> bool:
    found = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
    return bool(found and found[0])


def _has_password(connection: _Connection, name: str) -> bool:
    try:
        with connection.transaction():
            found = connection.execute(
                "SELECT rolpassword IS NOT NULL FROM pg_authid WHERE rolname = %s", (name,)
            ).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        # Only a superuser sees that; a role that was there is taken to have one.
        return True
    return bool(found and found[0])


def _own(connection: _Connection, names: Mapping[Role, sql.Identifier]) -> None:
    """Everything of the schema becomes the owner's."""
    owner = names[Role.OWNER]
    _run(
        connection,
        "GRANT USAGE, CREATE ON SCHEMA {schema} TO {owner}",
        owner=owner,
        schema=_schema(connection),
    )
    # Before the tables, by whose owner both are known.
    for name, _ in connection.execute(_FUNCTIONS).fetchall():
        _run(
            connection,
            "ALTER FUNCTION {function} OWNER TO {owner}",
            function=sql.Identifier(name),
            owner=owner,
        )
    for name, kind, _ in connection.execute(_RELATIONS).fetchall():
        _run(
            connection,
            "ALTER SEQUENCE {name} OWNER TO {owner}"
            if kind == "S"
            else "ALTER TABLE {name} OWNER TO {owner}",
            name=sql.Identifier(name),
            owner=owner,
        )


def _grant(connection: _Connection, names: Mapping[Role, sql.Identifier]) -> None:
    """Takes from the application and the reader what they have, and gives what they need, in one transaction."""
    owner, application, reader = (names[role] for role in Role)
    places: dict[str, sql.Composable] = {
        "schema": _schema(connection),
        "database": sql.Identifier(connection.info.dbname),
        "owner": owner,
        "application": application,
        "reader": reader,
    }
    for statement in _FRAME:
        _run(connection, statement, **places)
    for name, kind, appended in connection.execute(_RELATIONS).fetchall():
        if kind == "S":
            continue
        rights: LiteralString = _LESS.get(name) or (_APPEND if appended else _EVERYTHING)
        table = sql.Identifier(name)
        _run(
            connection,
            "GRANT {rights} ON {table} TO {application}",
            table=table,
            rights=sql.SQL(rights),
            **places,
        )
        if name not in _HIDDEN:
            _run(connection, "GRANT SELECT ON {table} TO {reader}", table=table, **places)
    for name, definer in connection.execute(_FUNCTIONS).fetchall():
        function = sql.Identifier(name)
        if definer:
            _run(connection, "REVOKE ALL ON FUNCTION {function} FROM PUBLIC", function=function)
            _run(
                connection,
                "GRANT EXECUTE ON FUNCTION {function} TO {application}",
                function=function,
                application=application,
            )


_FRAME: Final[tuple[LiteralString, ...]] = (
    "REVOKE ALL ON DATABASE {database} FROM PUBLIC, {application}, {reader}",
    "GRANT CONNECT ON DATABASE {database} TO {application}, {reader}",
    "GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {database} TO {owner}",
    "REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC, {application}, {reader}",
    "GRANT USAGE ON SCHEMA {schema} TO {application}, {reader}",
    "REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM PUBLIC, {application}, {reader}",
    # Partitions and segments to come, which the application asks for and the owner's functions make.
    (
        "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA {schema} "
        "GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {application}"
    ),
    "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA {schema} GRANT SELECT ON TABLES TO {reader}",
    "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA {schema} GRANT EXECUTE ON FUNCTIONS TO {application}",
)


def _schema(connection: _Connection) -> sql.Identifier:
    found = connection.execute("SELECT current_schema()").fetchone()
    return sql.Identifier(found[0] if found else "public")


def _run(connection: _Connection, statement: LiteralString, **places: Any) -> None:
    connection.execute(sql.SQL(statement).format(**places))
