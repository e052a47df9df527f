"""Conclusions of an experiment by stages, and sentences that explain them to people. Decides nothing."""

from collections.abc import Sequence

from registry.experiments.decisions import Evidence, PolicyDecision, decide
from registry.experiments.policies import Policy


def conclude_stages(evidence: Evidence, policy: Policy) -> tuple[PolicyDecision, ...]:
    """Return the conclusion from each stage's present feedback, in order; the last is what the policy goes by."""
    ends = range(1, len(evidence.stages) + 1)
    return tuple(decide(Evidence(stages=evidence.stages[:end]), policy) for end in ends)


def find_known(conclusions: Sequence[PolicyDecision], policy: Policy) -> PolicyDecision:
    """Return the conclusion of the latest stage that has one; the present stage's if none has.

    A new share begins a stage that knows nothing yet, which doesn't undo what was known.
    """
    known = (each for each in reversed(conclusions) if _is_known(each, policy))
    return next(known, conclusions[-1])


def explain(conclusion: PolicyDecision, policy: Policy) -> str:
    """Return a sentence that says how a verdict is to be read, and what would change it."""
    chance = f"{100 * policy.alpha:g} in 100"
    match conclusion.verdict:
        case "mismatch":
            return (
                "Something other than chance decides which units an arm answers, as when answers of one arm are lost: "
                "find the cause and start anew, because until then the arms' units can't be compared."
            )
        case "guardrail":
            return "The challenger harms its answers in another way than by their accuracy, whatever that is."
        case "better":
            return (
                "The whole interval lies above the least effect that counts. Of versions that are equal, at most "
                f"{chance} are ever called different, however often one looks."
            )
        case "worse":
            return (
                f"The whole interval lies below 0. Of versions that are equal, at most {chance} are ever called "
                "different, however often one looks."
            )
        case "inconclusive":
            return "The interval holds 0 even after the most units that the policy allows: no difference was found."
        case "undecided" if _is_known(conclusion, policy):
            return (
                "The interval of the difference still holds 0, so the versions may be equal; more feedback narrows it. "
                "It may be looked at after every feedback, and is made to find differences of a few points, so it is "
                "wider than that of a single look and may hold 0 for a while although the arms' own intervals "
                "don't overlap."
            )
        case _:
            champion, challenger = (_judged(conclusion, arm) for arm in ("champion", "challenger"))
            missing = [max(0, policy.min_units - units) for units in (champion, challenger)]
            return (
                f"Feedback on {missing[0]:,} units more of the champion and {missing[1]:,} more of the challenger in "
                "this stage gives a first verdict."
            )


def _is_known(conclusion: PolicyDecision, policy: Policy) -> bool:
    enough = min(_judged(conclusion, "champion"), _judged(conclusion, "challenger")) >= policy.min_units
    return enough or conclusion.verdict != "undecided"


def _judged(conclusion: PolicyDecision, arm: str) -> int:
    units: int = conclusion.numbers[arm]["judged_units"]
    return units
