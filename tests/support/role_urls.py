"""The three roles' names, passwords and URLs for tests."""

from collections.abc import Mapping
from urllib.parse import quote

import psycopg

from db.schema.roles import Login, Role
from tests.support.postgres import TestServer

LOGINS: Mapping[Role, Login] = {
    Role.OWNER: Login(name="some owner", password="o'w\\n@/", connections=5),
    Role.APPLICATION: Login(name="some application", password="äpp", connections=30),
    Role.READER: Login(name="some reader", password="read", connections=2),
}


class RoleUrls:
    """The URL of each role to one database."""

    def __init__(self, server: TestServer, url: str) -> None:
        self.superuser = url
        self.database = str(psycopg.conninfo.conninfo_to_dict(url)["dbname"])
        self._sockets = quote(str(server.server.sockets), safe="")

    def __getitem__(self, role: Role) -> str:
        login = LOGINS[role]
        return self.url(login.name, login.password or "")

    def url(self, name: str, password: str) -> str:
        who = f"{quote(name, safe='')}:{quote(password, safe='')}"
        return f"postgresql://{who}@/{self.database}?host={self._sockets}"
