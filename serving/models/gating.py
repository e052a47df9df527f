"""What the gates say of a version now, by the stored reports. Measures nothing, moves nothing."""

from collections.abc import Callable
from typing import Protocol

from db.models.evaluations import Evaluation
from registry.errors import NotRegistered, ReportInvalid
from registry.evaluation.gates import GateReport, Gates, evaluate_gates, report_unevaluated
from registry.evaluation.report import EvaluationReport
from registry.store.records import VersionRecord
from serving.core.catalog import Catalog
from serving.core.database_errors import translate_database_errors
from serving.core.registry_errors import call_registry


class Reports(Protocol):
    """The stored reports."""

    async def find_report(self, bundle_digest: str, data_digest: str) -> Evaluation | None:
        """The latest of a bundle by a held-out set."""

    async def list_of_bundle(self, bundle_digest: str, *, limit: int = 10) -> tuple[Evaluation, ...]:
        """Those of a bundle, newest first."""


class Sets(Protocol):
    """The registry, as the gatekeeper sees it; the calls block."""

    def version(self, model: str, version: str) -> VersionRecord:
        """One version."""
        ...

    def held_out_digest(self, model: str) -> str:
        """The set that versions are judged on."""
        ...


class GateRunner:
    """Without a stored report by the model's present held-out set a version passes no gate."""

    def __init__(
        self,
        *,
        reports: Reports,
        registry: Sets,
        catalog: Callable[[], Catalog],
        gates: Gates | None = None,
    ) -> None:
        self._reports = reports
        self._registry = registry
        self._catalog = catalog
        self._gates = gates or Gates()

    async def judged(self, model: str, record: VersionRecord, champion: str | None) -> GateReport:
        """What the gates say of a version against the champion with this number, None: there is none."""
        try:
            data = await call_registry(self._registry.held_out_digest, model)
        except NotRegistered:
            return report_unevaluated(
                record.version, champion, {record.version: "the model has no held-out set"}
            )
        wanted = {record.version: record.digest}
        if champion is not None and (digest := await self._digest_of(model, champion)) is not None:
            wanted[champion] = digest
        found = {version: await self._stored_report(digest, data) for version, digest in wanted.items()}
        ours, theirs = found[record.version], found.get(champion or "")
        if ours is None or None in found.values():
            missing = {
                version: await self._why_missing(wanted[version], data)
                for version, report in found.items()
                if report is None
            }
            return report_unevaluated(record.version, champion, missing)
        return evaluate_gates(self._gates, ours, theirs if champion != record.version else None)

    async def _digest_of(self, model: str, version: str) -> str | None:
        """The bundle of a version, None if it is gone."""
        entry = self._catalog().versions(model).get(version)
        if entry is not None:
            return entry.record.digest
        try:
            return (await call_registry(self._registry.version, model, version)).digest
        except NotRegistered:
            return None

    async def _why_missing(self, bundle: str, data: str) -> str:
        with translate_database_errors():
            last = next(
                (e for e in await self._reports.list_of_bundle(bundle) if e.data_digest == data), None
            )
        if last is None:
            return "never evaluated: POST …/evaluate does it"
        if last.state == "failed":
            return f"its evaluation failed: {last.reason}"
        return "its evaluation runs" if last.state == "running" else "its report can't be read"

    async def _stored_report(self, bundle: str, data: str) -> EvaluationReport | None:
        with translate_database_errors():
            found = await self._reports.find_report(bundle, data)
        try:
            return (
                EvaluationReport.parse(found.report)
                if found is not None and found.report is not None
                else None
            )
        except ReportInvalid:
            return None
