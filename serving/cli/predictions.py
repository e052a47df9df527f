"""The commands of the data plane: predict, similar, feedback."""

import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from serving.cli.output import TIMES, Api, calls_api, show_near, show_record, show_table


class Sentiment(StrEnum):
    """The labels of the default model."""

    NEGATIVE = "negative"
    NEUTRAL = "neutral"
    POSITIVE = "positive"


@calls_api
def predict(
    api: Api,
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT...", help="Texts; `-` alone reads one from stdin.")
    ],
    model: Annotated[str | None, typer.Option(help="Name of the model.")] = None,
    version: Annotated[str | None, typer.Option(help="Version; default: the champion.")] = None,
    user: Annotated[str | None, typer.Option(help="Id of the user that the texts come from.")] = None,
    unit: Annotated[
        str | None, typer.Option(help="Unit of an experiment; all its requests go to one arm.")
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Add the second opinion of the nearest texts with feedback; for one text."
        ),
    ] = False,
) -> None:
    """Predict the sentiment of texts, and store them."""
    if texts == ["-"]:
        try:
            texts = [sys.stdin.buffer.read().decode()]
        except UnicodeDecodeError as error:
            raise typer.BadParameter(f"what stdin holds isn't UTF-8: {error}") from None
    if explain and len(texts) > 1:
        raise typer.BadParameter("--explain is for one text")
    fields = {"model": model, "version": version, "user_id": user, "unit": unit, "explain": explain or None}
    if len(texts) == 1:
        answer = api.client.post("/v1/predict", text=texts[0], **fields)
        predictions = [answer]
    else:
        answer = api.client.post("/v1/predict/batch", texts=texts, **fields)
        predictions = answer["predictions"]
    columns = ["sentiment", "confidence", "model_version", "id"]
    if not all(each.get("supported", True) for each in predictions):
        columns[2:2] = ["language", "supported"]
    if explain:
        opinion = answer["second_opinion"] or {}
        predictions = [{**answer, "agreement": opinion.get("agreement"), "suggests": opinion.get("suggests")}]
        columns += ["agreement", "suggests"]
    show_table(predictions, columns, answer=answer, as_json=api.as_json)


@calls_api
def similar(
    api: Api,
    text: Annotated[str | None, typer.Argument(help="The text to find similar ones to.")] = None,
    prediction: Annotated[str | None, typer.Option(help="The prediction whose text to use instead.")] = None,
    like: Annotated[
        list[str] | None, typer.Option(help="Also similar to the text of this prediction; may be repeated.")
    ] = None,
    unlike: Annotated[
        list[str] | None,
        typer.Option(help="But not similar to the text of this prediction; may be repeated."),
    ] = None,
    keywords: Annotated[
        str | None, typer.Option(help='Words to search for, too or alone; `or`, `-word` and "a phrase" work.')
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, max=100, help="Maximum number.")] = 5,
    sentiment: Annotated[Sentiment | None, typer.Option(help="Only texts with this prediction.")] = None,
    model_version: Annotated[str | None, typer.Option(help="Predicted by this version.")] = None,
    user: Annotated[str | None, typer.Option(help="Id of the user that the text came from.")] = None,
    since: Annotated[str | None, typer.Option(help=f"Predicted at or after: {TIMES}.")] = None,
    until: Annotated[str | None, typer.Option(help=f"Predicted before: {TIMES}.")] = None,
    judged: Annotated[
        bool | None, typer.Option("--judged/--unjudged", help="With or without feedback.")
    ] = None,
    correct: Annotated[
        bool | None, typer.Option("--correct/--wrong", help="Only texts with this feedback.")
    ] = None,
    min_similarity: Annotated[float | None, typer.Option(min=-1, max=1, help="Least cosine.")] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Scan all vectors instead of using the index.")
    ] = False,
) -> None:
    """Find stored texts by meaning, by keywords, or by both."""
    if (text is not None and prediction is not None) or not (text or prediction or like or keywords):
        raise typer.BadParameter(
            "give a text, --prediction ID, --like ID as often as you want, or --keywords WORDS"
        )
    wanted: dict[str, Any] = {
        "sentiment": sentiment,
        "model_version": model_version,
        "user_id": user,
        "since": since,
        "until": until,
        "has_feedback": judged,
        "is_correct": correct,
    }
    filters = {name: value for name, value in wanted.items() if value is not None}
    answer = api.client.post(
        "/v1/similar",
        text=text,
        prediction_id=prediction,
        like=[{"prediction_id": each} for each in like or ()] or None,
        unlike=[{"prediction_id": each} for each in unlike or ()] or None,
        keywords=keywords,
        k=k,
        filters=filters or None,
        min_similarity=min_similarity,
        exact=exact or None,
    )
    show_near(answer, as_json=api.as_json)


@calls_api
def feedback(
    api: Api,
    prediction: Annotated[str, typer.Argument(metavar="PREDICTION_ID")],
    correct: Annotated[
        bool | None,
        typer.Option("--correct/--wrong", help="Was the prediction right? One of the two is needed."),
    ] = None,
    label: Annotated[Sentiment | None, typer.Option(help="The right answer.")] = None,
    comment: Annotated[str | None, typer.Option(help="A comment.")] = None,
) -> None:
    """Give feedback on a prediction; new feedback replaces the old."""
    if correct is None:
        raise typer.BadParameter("say whether the prediction was right", param_hint="--correct or --wrong")
    answer = api.client.post(
        "/v1/feedback", prediction_id=prediction, is_correct=correct, label=label, comment=comment
    )
    show_record(answer, as_json=api.as_json)
