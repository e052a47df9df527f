"""The installer: pip's settings as uv's, what it says meanwhile, and pip where uv can't install."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tools import install

LISTED = """\
:env:.find-links='/mnt/wheels'
download.no-cache-dir='true'
global.cert='/etc/ssl/ours.pem'
global.extra-index-url='file:///one/simple file:///two/simple'
global.find-links='/opt/wheels'
install.index-url='https://user:it%27s@mirror.example/simple'
install.trusted-host='mirror.example\\nother.example'
"""


def options_of(listed: str) -> list[list[str]]:
    return install.uv_ways(install.parse_settings(listed))


def test_pips_settings_are_read_as_pip_ranks_them() -> None:
    assert install.parse_settings(LISTED) == {
        "cert": "/etc/ssl/ours.pem",
        "extra-index-url": "file:///one/simple file:///two/simple",
        "find-links": "/mnt/wheels",
        "index-url": "https://user:it%27s@mirror.example/simple",
        "trusted-host": "mirror.example\nother.example",
    }
    assert install.parse_settings("") == {}


def test_uv_looks_where_pip_does() -> None:
    (options,) = options_of(LISTED)
    pairs = list(zip(options[::2], options[1::2], strict=True))
    assert pairs == [
        ("--index-strategy", "unsafe-best-match"),
        ("--default-index", "https://user:it%27s@mirror.example/simple"),
        ("--extra-index-url", "file:///one/simple"),
        ("--extra-index-url", "file:///two/simple"),
        ("--find-links", "/mnt/wheels"),
        ("--allow-insecure-host", "mirror.example"),
        ("--allow-insecure-host", "other.example"),
    ]
    assert options_of("global.no-index='1'\nglobal.find-links='/w'")[0].count("--no-index") == 1


def test_uv_chooses_the_build_of_torch_for_this_machine_where_there_is_one_index() -> None:
    for listed in ("", "global.index-url='https://mirror.example/simple'"):
        first, second = options_of(listed)
        assert first == [*second, "--torch-backend", "auto"]


def test_pips_certificates_and_proxy_hold_for_uv_unless_it_has_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://own.example")
    settings = {"cert": "/ours.pem", "proxy": "http://proxy.example", "default-timeout": "180"}
    environment = install.uv_environment(settings)
    assert environment["SSL_CERT_FILE"] == "/ours.pem"
    assert (environment["HTTP_PROXY"], environment["HTTPS_PROXY"]) == (
        "http://proxy.example",
        "http://own.example",
    )
    assert environment["UV_HTTP_TIMEOUT"] == "180"


def test_progress_tells_what_is_fetched_and_then_how_much_is_installed(tmp_path: Path) -> None:
    (tmp_path / "old-1.dist-info").mkdir()
    progress = install.Progress(tmp_path)
    assert progress.describe() == "looking for the packages"
    progress.add("Collecting numpy\n")
    progress.add("  Downloading numpy-2.4.6.whl (16.6 MB)\n")
    progress.add("Requirement already satisfied: pip\n")
    assert progress.describe() == "Downloading numpy-2.4.6.whl (16.6 MB) (2)"
    progress.add("Installing collected packages: numpy, torch, ray\n")
    (tmp_path / "numpy-2.dist-info").mkdir()
    assert progress.describe() == "installing: 1 of 3 packages"


def test_a_quiet_installer_is_spoken_for_and_a_failing_one_explained(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(install, "_PATIENCE", 0.01)
    release = tmp_path / "release"
    # It ends once it has been spoken for.
    waits = (
        "import pathlib, time\nprint('Collecting a', flush=True)\n"
        f"while not pathlib.Path({str(release)!r}).exists(): time.sleep(0.01)"
    )
    spoken: list[str] = []

    def describe(self: install.Progress) -> str:
        spoken.append("once")
        release.touch()
        return "something"

    monkeypatch.setattr(install.Progress, "describe", describe)
    assert install.run([sys.executable, "-c", waits], os.environ, 0.0) == 0
    assert spoken
    assert "something" in capfd.readouterr().out
    failing = "import sys\nfor n in range(99): print('line', n)\nsys.exit(3)"
    assert install.run([sys.executable, "-c", failing], os.environ, 0.0, show_failure=True) == 3
    assert capfd.readouterr().err.splitlines()[0] == "line 79"


@pytest.mark.parametrize(("uv_works", "installers"), [(True, ["uv"]), (False, ["uv", "pip"])])
def test_pip_installs_where_uv_cant(
    monkeypatch: pytest.MonkeyPatch, uv_works: bool, installers: list[str]
) -> None:
    used: list[str] = []

    def run(command: list[str], environment: Mapping[str, str], started: float, **_: object) -> int:
        assert command[-2:] == ["--editable", "."]
        used.append("uv" if command[0] == "/uv" else "pip")
        return 0 if used[-1] == "pip" or uv_works else 2

    monkeypatch.setattr(install, "run", run)
    monkeypatch.setattr(install, "find_uv", lambda: "/uv")
    monkeypatch.setattr(install, "pip_settings", lambda: {"find-links": "/w"})
    assert install.main(["--editable", "."]) == 0
    assert used == installers


def test_pip_alone_installs_where_uv_isnt_wanted_or_cant_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []

    def run(command: list[str], environment: Mapping[str, str], started: float, **_: object) -> int:
        used.append(command[0])
        return 0

    monkeypatch.setattr(install, "run", run)
    monkeypatch.setattr(install, "find_uv", lambda: None)
    assert install.main(["--editable", "."]) == 0
    monkeypatch.setattr(install, "find_uv", lambda: "/uv")
    monkeypatch.setenv("VALENCE_INSTALLER", "pip")
    assert install.main(["--editable", "."]) == 0
    assert used == [sys.executable] * 2


@pytest.mark.parametrize("other_is_first", [False, True])
def test_two_that_fetch_uv_at_once_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other_is_first: bool
) -> None:
    def pip(command: list[str], **_: object) -> None:
        folders = [Path(command[command.index("--target") + 1])]
        if other_is_first:
            folders.append(tmp_path / "uv")
        for folder in folders:
            (folder / "bin").mkdir(parents=True)
            (folder / "bin" / "uv").write_text(folder.name)

    monkeypatch.setattr(install, "_CACHE", tmp_path)
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr("subprocess.run", pip)
    assert install.find_uv() == str(tmp_path / "uv" / "bin" / "uv")
    assert [each.name for each in tmp_path.iterdir()] == ["uv"]


def test_uv_that_cant_be_fetched_is_done_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(install, "_CACHE", tmp_path / "cache")
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: None)
    assert install.find_uv() is None


def test_it_runs_before_anything_is_installed(tmp_path: Path) -> None:
    program = f"import sys; sys.path.insert(0, {str(Path.cwd())!r}); import tools.install"
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
