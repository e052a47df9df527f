"""Routing: which version answers a request, and as which arm. Pure: a catalogue and a request in, a choice out."""

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from registry.records import VersionRecord
from serving.catalogue import Catalogue


class Arm(StrEnum):
    """The part a version plays in an answer."""

    CHAMPION = "champion"
    NAMED = "named"


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The version that answers, and why it is the one."""

    record: VersionRecord
    arm: Arm
    experiment_id: UUID | None = None


def choose(catalogue: Catalogue, model: str, version: str | None) -> Choice:
    """A named version is never rerouted; without one the champion answers.

    Raises:
        NotFound: no such model or version.
        ModelNotReady: the version doesn't answer now.
    """
    if version is not None:
        return Choice(record=catalogue.answering(model, version), arm=Arm.NAMED)
    return Choice(record=catalogue.champion(model), arm=Arm.CHAMPION)
