"""The lock of the image: each file by its digest, pinned as the constraints say."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = Path("requirements.txt").read_text()
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*])?==([^\s;\\]+)", re.MULTILINE)
LOCKED = {canonicalize_name(name): version for name, version in PIN.findall(LOCK)}
CONSTRAINTS = {
    canonicalize_name(name): version for name, version in PIN.findall(Path("constraints.txt").read_text())
}


def test_every_dependency_of_the_image_but_torch_is_locked() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["s3"]]
    names = {canonicalize_name(Requirement(each).name) for each in wanted}
    assert names - LOCKED.keys() == {"torch"}, "run `make lock`"


def test_the_lock_and_the_constraints_agree() -> None:
    differing = {
        name: (version, CONSTRAINTS[name])
        for name, version in LOCKED.items()
        if CONSTRAINTS.get(name, version) != version
    }
    assert not differing, "run `make lock`"


@pytest.mark.parametrize("entry", re.split(r"\n(?=\S)", LOCK.partition("\n\n")[2] or LOCK)[2:])
def test_each_file_has_its_digest_and_no_address(entry: str) -> None:
    assert "--hash=sha256:" in entry
    assert "://" not in entry
