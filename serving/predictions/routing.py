"""Routing: which version answers a request, and as which arm. A pure function of catalog, traffic and request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID

from registry.experiments.assignment import in_challenger
from registry.store.records import VersionRecord
from serving.core.catalog import Catalog


class Arm(StrEnum):
    """The part of a version in an answer."""

    CHAMPION = "champion"
    CHALLENGER = "challenger"
    SHADOW = "shadow"
    NAMED = "named"


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """How an experiment divides a model's units between champion and challenger.

    In a `shadow` experiment the champion answers everybody, and the challenger scores its share unseen.
    """

    experiment_id: UUID
    stage: int
    champion: str
    challenger: str
    share: float
    salt: str
    shadow: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """The splits of the running experiments, by model."""

    splits: Mapping[str, Split] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The version that answers, its arm, and the shadow version that scores too, unseen."""

    record: VersionRecord
    arm: Arm
    split: Split | None = None
    shadow: VersionRecord | None = None

    @property
    def experiment_id(self) -> UUID | None:
        """The experiment that this choice counts for, if any."""
        return None if self.split is None else self.split.experiment_id


def choose(catalog: Catalog, traffic: Traffic, model: str, version: str | None, unit: str) -> Choice:
    """Return the version that answers: the named one, or else the unit's arm, or without an experiment the champion.

    An experiment whose challenger isn't ready, or whose champion has changed, routes nobody: answers given meanwhile
    don't count for it.

    Raises:
        NotFound: no such model or version.
        ModelNotReady: the version doesn't answer now.
    """
    if version is not None:
        return Choice(record=catalog.ready_version(model, version), arm=Arm.NAMED)
    champion = catalog.champion(model)
    split = traffic.splits.get(model)
    if split is None or split.champion != champion.version or not catalog.is_ready(model, split.challenger):
        return Choice(record=champion, arm=Arm.CHAMPION)
    challenger = catalog.ready_version(model, split.challenger)
    in_share = in_challenger(split.salt, unit, split.share)
    if in_share and not split.shadow:
        return Choice(record=challenger, arm=Arm.CHALLENGER, split=split)
    return Choice(
        record=champion,
        arm=Arm.CHAMPION,
        split=split,
        shadow=challenger if in_share and split.shadow else None,
    )
