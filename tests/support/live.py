"""A whole platform in its own processes, started by `valence up` with its own home and port."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from registry import encoders
from registry.encoders.export import build_encoder
from registry.encoders.sources import SentenceEncoderSource, default_source, joint_source
from registry.store.builtin_versions import open_builtin
from tests.support.clock import eventually
from tests.support.ports import find_free_port

_FAST = {
    "VALENCE_DRAIN_SECONDS": "1",
    "VALENCE_EVALUATION_SHARE": "1",
    "VALENCE_REEMBEDDING_SHARE": "1",
    "VALENCE_ENCODER_WARM_UP_SECONDS": "2",
    "HF_HUB_OFFLINE": "1",
}
ENCODERS = Path(".cache/encoders")
_OURS = ("DATABASE_URL", "DATABASE_READ_URL", "DATABASE_DIRECT_URL", "MLFLOW_TRACKING_URI", "RAY_ADDRESS")
# Of an asynchronous client.
CONNECTIONS = 128


@dataclass
class LivePlatform:
    """`valence` in one home; tests can find each of its processes, and end it by its id."""

    home: Path
    port: int
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return (self.home / "admin.key").read_text().strip()

    def environment(self) -> dict[str, str]:
        """Return the environment of this platform's commands."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("VALENCE_", "RAY_", "OMP_")) and name not in _OURS
        }
        return (
            inherited
            | _FAST
            | {
                "VALENCE_HOME": str(self.home),
                "VALENCE_PORT": str(self.port),
                **self.settings,
            }
        )

    def valence(self, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Run `valence …` to its end."""
        return subprocess.run(
            [Path(sys.executable).with_name("valence"), *arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    def up(self) -> None:
        """Run `valence up`, which must succeed."""
        try:
            result = self.valence("up")
        except subprocess.TimeoutExpired as late:
            raise AssertionError(f"{late}\n{self.log()}") from late
        assert result.returncode == 0, result.stderr + self.log()

    def down(self) -> None:
        """Run `valence down`."""
        self.valence("down")

    def log(self) -> str:
        """Return the end of the platform's log."""
        path = self.home / "logs" / "platform.log"
        return path.read_text()[-4000:] if path.exists() else ""

    def log_lines(self) -> list[dict[str, Any]]:
        """Return the platform's own lines of the log; lines that Ray writes at its start are no JSON."""
        log = (self.home / "logs" / "platform.log").read_text()
        # The last line may still be incomplete.
        complete = log[: log.rfind("\n") + 1]
        return [json.loads(line) for line in complete.splitlines() if line.startswith("{")]

    def client(self, **arguments: Any) -> httpx.Client:
        """Return a client with the admin's key."""
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, **arguments)

    def async_client(self) -> httpx.AsyncClient:
        """Return an asynchronous client with the admin's key, for many requests at once."""
        return httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=120,
            limits=httpx.Limits(max_connections=CONNECTIONS),
        )

    def processes(self) -> list[psutil.Process]:
        """Return every process of this platform, by the home in its environment or by its working folder."""
        by_id: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("VALENCE_HOME") == str(self.home)
                ours = ours or process.cwd() == str((self.home / "postgres").resolve() / "data")
            except psutil.Error:
                continue
            if ours and process.pid != os.getpid():
                by_id[process.pid] = process
        return list(by_id.values())

    def find_processes(self, part: str) -> list[psutil.Process]:
        """Return the platform's processes whose command line contains this."""
        chosen = []
        for process in self.processes():
            try:
                if part in " ".join(process.cmdline()):
                    chosen.append(process)
            except psutil.Error:
                continue
        return chosen

    def ready(self) -> bool:
        """Return whether the platform is ready."""
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=5).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def wait_until_ready(self, seconds: float) -> None:
        """Wait until the platform is ready."""
        eventually(self.ready, within=seconds, what="the platform is ready")


def build_encoders() -> dict[str, Path]:
    """Return the encoders of a fresh installation by digest, built once; the champion's is last."""
    return {source.digest: _build(source) for source in _sources()}


def link_encoders(home: Path) -> None:
    """Let a home find the encoders of a fresh installation, already built."""
    (home / "build").mkdir(parents=True)
    for digest, folder in build_encoders().items():
        (home / "build" / digest).symlink_to(folder.absolute())


def keep_encoders(home: Path) -> None:
    """Keep the encoders that a fresh installation has built for later platforms."""
    for source in _sources():
        built, kept = home / "build" / source.digest, _cache_path(source)
        if built.exists() and not kept.exists():
            ENCODERS.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=ENCODERS) as folder:
                shutil.copytree(built, Path(folder) / "encoder").rename(kept)


def _sources() -> tuple[SentenceEncoderSource, SentenceEncoderSource]:
    default = default_source()
    return default, joint_source(open_builtin("joint"), default)


def _build(source: SentenceEncoderSource) -> Path:
    folder = _cache_path(source)
    if not folder.exists():
        build_encoder(source, folder)
    return folder


def _cache_path(source: SentenceEncoderSource) -> Path:
    """Return an encoder's place by its content: its source, and the code and libraries that build it."""
    digest = hashlib.sha256(source.digest.encode())
    for file in [*sorted(Path(encoders.__file__).parent.glob("*.py")), Path("constraints.txt")]:
        digest.update(file.read_bytes())
    return ENCODERS / digest.hexdigest()[:16]


@contextmanager
def live_platform(
    within: Path | None = None, *, fresh: bool = False, name: str = "home", **settings: str
) -> Iterator[LivePlatform]:
    """Run a platform inside the block; no process and no file remains.

    Unless it is `fresh`, its encoders are already built; building takes half a minute for each.
    """
    with unstarted_platform(within, fresh=fresh, name=name, **settings) as platform:
        platform.up()
        yield platform


@contextmanager
def unstarted_platform(
    within: Path | None = None, *, fresh: bool = False, name: str = "home", **settings: str
) -> Iterator[LivePlatform]:
    """Yield a platform that isn't started, with its home in a new folder (inside `within`)."""
    # pytest's own folder has mode 700: the database's user couldn't enter it.
    with tempfile.TemporaryDirectory(prefix="valence-live-", dir=within) as folder:
        Path(folder).chmod(0o755)
        platform = LivePlatform(home=Path(folder) / name, port=find_free_port(), settings=settings)
        if not fresh:
            link_encoders(platform.home)
        try:
            yield platform
        finally:
            platform.down()
            for process in platform.processes():
                process.kill()
