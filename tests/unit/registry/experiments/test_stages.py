"""What the stages of an experiment tell people."""

import pytest

from registry.experiments.decisions import ArmCounts, Evidence, Stage
from registry.experiments.policies import Policy
from registry.experiments.stages import conclude_stages, explain, find_known
from registry.experiments.statistics import ArmFeedback

POLICY = Policy(min_units=100, max_units=5_000)


def stage(champion: int, challenger: int, units: int, **changes: int) -> Stage:
    """Return a stage with so many right answers of so many units of each arm."""
    arms = [
        ArmCounts(
            units=units,
            new_units=changes.get(name, units),
            answered=units,
            feedback=ArmFeedback(units=units, total=right, squares=right),
        )
        for name, right in (("before", champion), ("after", challenger))
    ]
    return Stage(share=0.5, champion=arms[0], challenger=arms[1])


EMPTY = stage(0, 0, 0)


@pytest.mark.parametrize(
    ("stages", "known", "words"),
    [
        ([EMPTY], 1, "Feedback on 100 units more of the champion and 100 more of the challenger"),
        ([stage(90, 91, 99), stage(0, 0, 3)], 2, "Feedback on 97 units more"),
        ([stage(800, 820, 1_000)], 1, "although the arms' own intervals don't overlap"),
        ([stage(800, 820, 1_000), EMPTY], 1, "may be equal"),
        ([stage(500, 800, 1_000), EMPTY, stage(1, 1, 2)], 1, "at most 5 in 100"),
        ([stage(800, 500, 1_000), stage(800, 820, 1_000)], 2, "may be equal"),
        ([stage(800, 500, 1_000), EMPTY], 1, "lies below 0"),
        ([stage(4_000, 4_010, 5_000), EMPTY], 1, "no difference was found"),
        ([stage(800, 820, 1_000, after=500)], 1, "find the cause"),
    ],
)
def test_what_was_known_stays_known_and_is_explained(stages: list[Stage], known: int, words: str) -> None:
    conclusions = conclude_stages(Evidence(stages=tuple(stages)), POLICY)
    assert [each.numbers["stage"] for each in conclusions] == list(range(1, len(stages) + 1))
    found = find_known(conclusions, POLICY)
    assert found == conclusions[known - 1]
    assert words in explain(found, POLICY)
