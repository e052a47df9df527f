"""Routing: which version answers during an experiment."""

from uuid import uuid4

import pytest

from serving.core.catalog import Catalog, CatalogEntry, VersionState
from serving.errors import ModelNotReady
from serving.predictions.routing import Arm, Choice, Split, Traffic, choose
from tests.support.app import MODEL, new_record


def catalog(challenger: VersionState = VersionState.READY, champion: str = "1") -> Catalog:
    return Catalog(
        models={
            MODEL: {
                "1": CatalogEntry(record=new_record("1"), state=VersionState.READY),
                "2": CatalogEntry(record=new_record("2"), state=challenger),
            }
        },
        champions={MODEL: champion},
        space_encoders=frozenset(["e" * 64]),
        embedder="e" * 64,
    )


def traffic(share: float, *, shadow: bool = False, salt: str = "salt") -> Traffic:
    split = Split(
        experiment_id=uuid4(), stage=1, champion="1", challenger="2", share=share, salt=salt, shadow=shadow
    )
    return Traffic(splits={MODEL: split})


def choose_for(split: Traffic, unit: str, *, version: str | None = None) -> Choice:
    return choose(catalog(), split, MODEL, version, unit)


def units_of_challenger(split: Traffic, units: int = 2_000) -> set[str]:
    return {str(unit) for unit in range(units) if choose_for(split, str(unit)).arm is Arm.CHALLENGER}


def test_a_unit_stays_on_its_arm_and_the_share_is_kept() -> None:
    split = traffic(0.3)
    assert units_of_challenger(split) == units_of_challenger(split)
    assert 500 < len(units_of_challenger(split)) < 700


def test_a_higher_share_moves_only_the_units_that_it_must() -> None:
    assert units_of_challenger(traffic(0.1)) < units_of_challenger(traffic(0.3))


def test_every_answer_of_an_experiment_names_it_and_both_arms() -> None:
    split = traffic(0.5)
    choices = [choose_for(split, str(unit)) for unit in range(50)]
    assert {(each.arm, each.record.version) for each in choices} == {
        (Arm.CHAMPION, "1"),
        (Arm.CHALLENGER, "2"),
    }
    assert {each.experiment_id for each in choices} == {split.splits[MODEL].experiment_id}


def test_a_named_version_is_not_part_of_the_experiment() -> None:
    choice = choose_for(traffic(1.0), "anybody", version="1")
    assert (choice.arm, choice.experiment_id, choice.shadow) == (Arm.NAMED, None, None)


def test_in_the_shadow_the_champion_answers_everybody_and_the_challenger_scores_its_share() -> None:
    choices = [choose_for(traffic(0.5, shadow=True), str(unit)) for unit in range(200)]
    assert {each.arm for each in choices} == {Arm.CHAMPION}
    assert {each.shadow and each.shadow.version for each in choices} == {None, "2"}


@pytest.mark.parametrize(
    "now",
    [catalog(VersionState.STARTING), catalog(VersionState.FAILED), catalog(champion="2")],
    ids=["challenger starts", "challenger failed", "another champion"],
)
def test_without_a_ready_challenger_or_with_another_champion_nobody_is_routed_or_counted(
    now: Catalog,
) -> None:
    if now.champions[MODEL] == "1":
        choice = choose(now, traffic(1.0), MODEL, None, "anybody")
        assert (choice.arm, choice.record.version, choice.experiment_id) == (Arm.CHAMPION, "1", None)
    else:
        assert choose(now, traffic(1.0), MODEL, None, "anybody").experiment_id is None


def test_no_answer_is_chosen_while_no_encoder_of_the_space_runs() -> None:
    with pytest.raises(ModelNotReady, match="no encoder of the embedding space"):
        Catalog().placement(new_record("1", kind="lexicon"))
