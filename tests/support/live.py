"""A whole platform in processes of its own, started as a user would: `valence up`, with its own home and port."""

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


@dataclass
class LivePlatform:
    """`valence` in one home; every process of it can be found, and ended by its id."""

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
        """What every command of this platform runs under."""
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
        """`valence up`, which must succeed."""
        try:
            done = self.valence("up")
        except subprocess.TimeoutExpired as late:
            raise AssertionError(f"{late}\n{self.log()}") from late
        assert done.returncode == 0, done.stderr + self.log()

    def down(self) -> None:
        """`valence down`."""
        self.valence("down")

    def log(self) -> str:
        """The end of the platform's log."""
        path = self.home / "logs" / "platform.log"
        return path.read_text()[-4000:] if path.exists() else ""

    def log_lines(self) -> list[dict[str, Any]]:
        """Return the platform's own lines of the log; those that Ray writes as it starts are no JSON."""
        log = (self.home / "logs" / "platform.log").read_text()
        # A line that is being written has no end yet.
        complete = log[: log.rfind("\n") + 1]
        return [json.loads(line) for line in complete.splitlines() if line.startswith("{")]

    def client(self, **arguments: Any) -> httpx.Client:
        """A client with the admin's key."""
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, **arguments)

    def async_client(self) -> httpx.AsyncClient:
        """The same, for many requests at once."""
        return httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=120,
            limits=httpx.Limits(max_connections=128),
        )

    def processes(self) -> list[psutil.Process]:
        """Every process of this platform, by the home in its environment or by its parents."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("VALENCE_HOME") == str(self.home)
                ours = ours or process.cwd() == str((self.home / "postgres").resolve() / "data")
            except psutil.Error:
                continue
            if ours and process.pid != os.getpid():
                found[process.pid] = process
        return list(found.values())

    def find_processes(self, part: str) -> list[psutil.Process]:
        """Those of them with this in their command line."""
        chosen = []
        for process in self.processes():
            try:
                if part in " ".join(process.cmdline()):
                    chosen.append(process)
            except psutil.Error:
                continue
        return chosen

    def ready(self) -> bool:
        """Whether it answers with what it needs."""
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=5).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def wait_until_ready(self, seconds: float) -> None:
        """Wait for that."""
        eventually(self.ready, within=seconds, what="the platform is ready")


def build_encoders() -> dict[str, Path]:
    """Return the encoders of a fresh installation by digest, built once; the champion's is last."""
    return {source.digest: _build(source) for source in _sources()}


def link_encoders(home: Path) -> None:
    """Have a home find the encoders of a fresh installation built."""
    (home / "build").mkdir(parents=True)
    for digest, folder in build_encoders().items():
        (home / "build" / digest).symlink_to(folder.absolute())


def keep_encoders(home: Path) -> None:
    """Keep the encoders that a fresh installation has built for the platforms that come after it."""
    for source in _sources():
        built, kept = home / "build" / source.digest, _cache_path(source)
        if built.exists() and not kept.exists():
            ENCODERS.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=ENCODERS) as folder:
                shutil.copytree(built, Path(folder) / "encoder").rename(kept)


def _sources() -> tuple[SentenceEncoderSource, SentenceEncoderSource]:
    own = default_source()
    return own, joint_source(open_builtin("joint"), own)


def _build(source: SentenceEncoderSource) -> Path:
    folder = _cache_path(source)
    if not folder.exists():
        build_encoder(source, folder)
    return folder


def _cache_path(source: SentenceEncoderSource) -> Path:
    """The place of an encoder by what it is made of: its source, and the code and the libraries that build it."""
    digest = hashlib.sha256(source.digest.encode())
    for file in [*sorted(Path(encoders.__file__).parent.glob("*.py")), Path("constraints.txt")]:
        digest.update(file.read_bytes())
    return ENCODERS / digest.hexdigest()[:16]


@contextmanager
def live_platform(
    within: Path | None = None, *, fresh: bool = False, **settings: str
) -> Iterator[LivePlatform]:
    """A platform that runs inside the block and leaves no process and no file behind.

    Unless it is `fresh`, it finds its encoders built, which takes a machine half a minute for each.
    """
    with unstarted_platform(within, fresh=fresh, **settings) as platform:
        platform.up()
        yield platform


@contextmanager
def unstarted_platform(
    within: Path | None = None, *, fresh: bool = False, **settings: str
) -> Iterator[LivePlatform]:
    """One that is to be brought up inside the block; its home lies in a folder of its own, `within` another."""
    # Not pytest's own folder: of mode 700, it would keep the database's user out.
    with tempfile.TemporaryDirectory(prefix="valence-live-", dir=within) as folder:
        Path(folder).chmod(0o755)
        platform = LivePlatform(home=Path(folder) / "home", port=find_free_port(), settings=settings)
        if not fresh:
            link_encoders(platform.home)
        try:
            yield platform
        finally:
            platform.down()
            for process in platform.processes():
                process.kill()
