"""The database's roles, each with the fewest rights it needs: owner, application, reader.

Owns their grants, time limits and connection limits. Never keeps, shows or sends a password in the clear.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from db.core.blocking import connect, fetch_value
from db.core.sessions import BlockingConnection
from db.errors import Conflict, SchemaMismatch
from db.schema import revisions


class Role(StrEnum):
    """The purpose of a role."""

    OWNER = "owner"
    APPLICATION = "application"
    READER = "reader"


@dataclass(frozen=True, kw_only=True, slots=True)
class Login:
    """The name, password (None: unchanged) and connection limit of a role."""

    name: str
    password: str | None = field(default=None, repr=False)
    connections: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsuredRole:
    """A role after `ensure_roles`; without a password it can't sign in by SCRAM."""

    role: Role
    name: str
    connections: int
    created: bool
    has_password: bool


# Timeouts in PostgreSQL's spelling. A session may raise its own, so they limit accidents, not malice.
_CLIENT_SETTINGS: Final = {
    "statement_timeout": "30s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "60s",
    "client_connection_check_interval": "5s",
}
SETTINGS: Final[Mapping[Role, Mapping[str, str]]] = {
    Role.OWNER: {
        "statement_timeout": "0",
        "lock_timeout": "5s",
        "idle_in_transaction_session_timeout": "10min",
    },
    Role.APPLICATION: _CLIENT_SETTINGS,
    Role.READER: {**_CLIENT_SETTINGS, "default_transaction_read_only": "on"},
}
_ALL_RIGHTS: Final[LiteralString] = "SELECT, INSERT, UPDATE, DELETE"
_APPEND_RIGHTS: Final[LiteralString] = "SELECT, INSERT"
# The application's rights on tables that it may not write freely.
_FEWER_RIGHTS: Final[Mapping[str, LiteralString]] = {
    "alembic_version": "SELECT",
    "installation": _APPEND_RIGHTS,
}
# Digests and fingerprints of keys, stored answers: the reader doesn't need them.
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
    """Create the three roles or correct them, in one transaction; running it again changes nothing.

    The owner gets the schema's tables and functions. Run this as a superuser, or as the role with CREATEROLE that
    owns them. Run it again after an upgrade: until then the application has all rights on new tables.

    Raises:
        SchemaMismatch: the schema isn't this release's: upgrade first.
        Conflict: a role of that name has more rights than any of the three may have.
        NotPermitted: the role of `url` lacks the right.
    """
    with connect(url) as connection:
        connection.execute("SET LOCAL lock_timeout = '5s'")
        _require_schema(connection)
        ensured = [_ensure_role(connection, role, logins[role]) for role in Role]
        names = {role: sql.Identifier(logins[role].name) for role in Role}
        _transfer_ownership(connection, names)
        _grant(connection, names)
    return ensured


def _require_schema(connection: BlockingConnection) -> None:
    if fetch_value(connection, "SELECT to_regclass('alembic_version')") is not None:
        revision = fetch_value(connection, "SELECT version_num FROM alembic_version")
        if revisions.is_compatible(revision):
            return
    raise SchemaMismatch("the schema isn't this release's: run `valence db upgrade` first")


def _ensure_role(connection: BlockingConnection, role: Role, login: Login) -> EnsuredRole:
    is_powerful = fetch_value(
        connection,
        "SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls "
        "FROM pg_roles WHERE rolname = %s",
        login.name,
    )
    if is_powerful:
        raise Conflict(f"the role {login.name} has more rights than {role} may have: choose another name")
    created = is_powerful is None
    name = sql.Identifier(login.name)
    if created:
        _run(connection, "CREATE ROLE {name} LOGIN", name=name)
        # Only a superuser acts for a role without being its member.
        if not _is_superuser(connection):
            _run(connection, "GRANT {name} TO CURRENT_USER", name=name)
    limit = sql.Literal(login.connections)
    _run(connection, "ALTER ROLE {name} LOGIN CONNECTION LIMIT {limit}", name=name, limit=limit)
    if login.password is not None:
        # Only the verifier leaves this process, so that no log of the server can hold the password.
        verifier = connection.pgconn.encrypt_password(
            login.password.encode(), login.name.encode(), b"scram-sha-256"
        )
        secret = sql.Literal(verifier.decode())
        _run(connection, "ALTER ROLE {name} PASSWORD {secret}", name=name, secret=secret)
    for setting, value in SETTINGS[role].items():
        pair = {"setting": sql.Identifier(setting), "value": sql.Literal(value)}
        _run(connection, "ALTER ROLE {name} SET {setting} = {value}", name=name, **pair)
    return EnsuredRole(
        role=role,
        name=login.name,
        connections=login.connections,
        created=created,
        has_password=login.password is not None or (not created and _has_password(connection, login.name)),
    )


def _is_superuser(connection: BlockingConnection) -> bool:
    return bool(fetch_value(connection, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"))


def _has_password(connection: BlockingConnection, name: str) -> bool:
    try:
        with connection.transaction():
            query: LiteralString = "SELECT rolpassword IS NOT NULL FROM pg_authid WHERE rolname = %s"
            return bool(fetch_value(connection, query, name))
    except psycopg.errors.InsufficientPrivilege:
        # Only a superuser sees it; an existing role is assumed to have one.
        return True


def _transfer_ownership(connection: BlockingConnection, names: Mapping[Role, sql.Identifier]) -> None:
    """Make the owner own everything in the schema."""
    owner = names[Role.OWNER]
    schema = _schema(connection)
    _run(connection, "GRANT USAGE, CREATE ON SCHEMA {schema} TO {owner}", schema=schema, owner=owner)
    # Before the tables, because both queries find their rows by the tables' owner.
    for name, _ in connection.execute(_FUNCTIONS).fetchall():
        _run(connection, "ALTER FUNCTION {name} OWNER TO {owner}", name=sql.Identifier(name), owner=owner)
    for name, kind, _ in connection.execute(_RELATIONS).fetchall():
        word = sql.SQL("SEQUENCE" if kind == "S" else "TABLE")
        _run(
            connection,
            "ALTER {word} {name} OWNER TO {owner}",
            word=word,
            name=sql.Identifier(name),
            owner=owner,
        )


def _grant(connection: BlockingConnection, names: Mapping[Role, sql.Identifier]) -> None:
    """Revoke the rights of application and reader, and grant those they need, in one transaction."""
    identifiers: dict[str, sql.Composable] = {
        "schema": _schema(connection),
        "database": sql.Identifier(connection.info.dbname),
        **{role.value: name for role, name in names.items()},
    }
    for statement in _BASE_GRANTS:
        _run(connection, statement, **identifiers)
    for name, kind, append_only in connection.execute(_RELATIONS).fetchall():
        if kind == "S":
            continue
        rights: LiteralString = _FEWER_RIGHTS.get(name) or (_APPEND_RIGHTS if append_only else _ALL_RIGHTS)
        identifiers |= {"table": sql.Identifier(name), "rights": sql.SQL(rights)}
        _run(connection, "GRANT {rights} ON {table} TO {application}", **identifiers)
        if name not in _HIDDEN:
            _run(connection, "GRANT SELECT ON {table} TO {reader}", **identifiers)
    for name, definer in connection.execute(_FUNCTIONS).fetchall():
        identifiers["function"] = sql.Identifier(name)
        if definer:
            _run(connection, "REVOKE ALL ON FUNCTION {function} FROM PUBLIC", **identifiers)
            _run(connection, "GRANT EXECUTE ON FUNCTION {function} TO {application}", **identifiers)


_BASE_GRANTS: Final[tuple[LiteralString, ...]] = (
    "REVOKE ALL ON DATABASE {database} FROM PUBLIC, {application}, {reader}",
    "GRANT CONNECT ON DATABASE {database} TO {application}, {reader}",
    "GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {database} TO {owner}",
    "REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC, {application}, {reader}",
    "GRANT USAGE ON SCHEMA {schema} TO {application}, {reader}",
    "REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM PUBLIC, {application}, {reader}",
    # For later partitions and segments, which the owner's functions create for the application.
    (
        "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA {schema} "
        "GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {application}"
    ),
    "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA {schema} GRANT SELECT ON TABLES TO {reader}",
    "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA {schema} GRANT EXECUTE ON FUNCTIONS TO {application}",
)


def _schema(connection: BlockingConnection) -> sql.Identifier:
    return sql.Identifier(fetch_value(connection, "SELECT current_schema()") or "public")


def _run(connection: BlockingConnection, statement: LiteralString, **identifiers: Any) -> None:
    connection.execute(sql.SQL(statement).format(**identifiers))
