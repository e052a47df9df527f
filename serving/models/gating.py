"""Run the gates on a version, by the stored evaluation reports. Measures nothing and moves no alias."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from db.models.evaluations import EvaluationRepository
from registry.errors import NotRegistered, ReportInvalid
from registry.evaluation.gates import GateReport, Gates, evaluate_gates, report_unevaluated
from registry.evaluation.report import EvaluationReport
from registry.store.records import VersionRecord
from serving.core.catalog import Catalog
from serving.core.database_errors import translate_database_errors
from serving.core.registry_errors import call_registry

if TYPE_CHECKING:
    from registry.store.model_registry import ModelRegistry


@dataclass(frozen=True, kw_only=True, slots=True)
class GateRunner:
    """A version without a stored report on the model's present held-out set passes no gate."""

    evaluations: EvaluationRepository
    registry: "ModelRegistry"
    catalog: Callable[[], Catalog]
    gates: Gates

    async def run(self, model: str, record: VersionRecord, champion: str | None) -> GateReport:
        """Run the gates on a version against the champion with this number, None if there is none."""
        try:
            data = await call_registry(self.registry.held_out_digest, model)
        except NotRegistered:
            return report_unevaluated(
                record.version, champion, {record.version: "the model has no held-out set"}
            )
        bundles = {record.version: record.digest}
        if champion is not None and (digest := await self._digest_of(model, champion)) is not None:
            bundles[champion] = digest
        reports = {version: await self._stored_report(digest, data) for version, digest in bundles.items()}
        candidate_report, champion_report = reports[record.version], reports.get(champion or "")
        if candidate_report is None or None in reports.values():
            missing = {
                version: await self._why_missing(bundles[version], data)
                for version, report in reports.items()
                if report is None
            }
            return report_unevaluated(record.version, champion, missing)
        return evaluate_gates(
            self.gates, candidate_report, champion_report if champion != record.version else None
        )

    async def _digest_of(self, model: str, version: str) -> str | None:
        """Return the digest of a version's bundle, None if the version is gone."""
        entry = self.catalog().versions(model).get(version)
        if entry is not None:
            return entry.record.digest
        try:
            return (await call_registry(self.registry.version, model, version)).digest
        except NotRegistered:
            return None

    async def _why_missing(self, bundle: str, data: str) -> str:
        with translate_database_errors():
            evaluations = await self.evaluations.list_of_bundle(bundle)
        last = next((each for each in evaluations if each.data_digest == data), None)
        if last is None:
            return "never evaluated: `valence models evaluate`, or POST …/evaluate, does it"
        if last.state == "failed":
            return f"its evaluation failed: {last.reason}"
        return "its evaluation runs" if last.state == "running" else "its report can't be read"

    async def _stored_report(self, bundle: str, data: str) -> EvaluationReport | None:
        with translate_database_errors():
            evaluation = await self.evaluations.find_report(bundle, data)
        if evaluation is None or evaluation.report is None:
            return None
        try:
            return EvaluationReport.parse(evaluation.report)
        except ReportInvalid:
            return None
