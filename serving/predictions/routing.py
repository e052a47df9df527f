"""Routing: which version answers a request, and as which arm. Pure: a catalog, the traffic and a request in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID

from registry.experiments.assignment import in_challenger
from registry.store.records import VersionRecord
from serving.core.catalog import Catalog


class Arm(StrEnum):
    """The part a version plays in an answer."""

    CHAMPION = "champion"
    CHALLENGER = "challenger"
    SHADOW = "shadow"
    NAMED = "named"


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """How an experiment divides a model's units between champion and challenger.

    In a `shadow` experiment the champion answers everybody, and the challenger scores its share beside.
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
    """The running experiments by model, at one moment."""

    splits: Mapping[str, Split] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The version that answers, why it is the one, and which one scores beside it, unseen."""

    record: VersionRecord
    arm: Arm
    split: Split | None = None
    shadow: VersionRecord | None = None

    @property
    def experiment_id(self) -> UUID | None:
        """The experiment that this choice counts for."""
        return None if self.split is None else self.split.experiment_id


def choose(catalog: Catalog, traffic: Traffic, model: str, version: str | None, unit: str) -> Choice:
    """A named version is never rerouted; without one the unit's arm answers, or the champion if nothing is tried.

    An experiment whose challenger isn't ready, or whose champion no longer is the champion, routes nobody: what is
    answered meanwhile doesn't count for it.

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
    tried = catalog.ready_version(model, split.challenger)
    chosen = in_challenger(split.salt, unit, split.share)
    if chosen and not split.shadow:
        return Choice(record=tried, arm=Arm.CHALLENGER, split=split)
    return Choice(
        record=champion,
        arm=Arm.CHAMPION,
        split=split,
        shadow=tried if chosen and split.shadow else None,
    )
