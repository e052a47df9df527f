"""The commands over stored texts: near-duplicates, second opinions, corrections, diffs, topics, drift, reviews."""

from typing import Annotated, Any, TypeAlias

import typer

from serving.cli.output import TIMES, Api, calls_api, show_json, show_near, show_record, show_table
from serving.cli.predictions import Sentiment

PredictionId: TypeAlias = Annotated[str, typer.Argument(metavar="PREDICTION_ID")]
Model: TypeAlias = Annotated[str | None, typer.Option(help="Name of the model.")]
Since: TypeAlias = Annotated[str | None, typer.Option(help=f"Predicted at or after: {TIMES}.")]
Until: TypeAlias = Annotated[str | None, typer.Option(help="Predicted before; default: now.")]
Cosine: TypeAlias = Annotated[float | None, typer.Option(min=-1, max=1, help="Least cosine; default: 0.95.")]


@calls_api
def duplicates(
    api: Api,
    text: Annotated[str | None, typer.Argument(help="The text.")] = None,
    prediction: Annotated[str | None, typer.Option(help="The prediction whose text to use instead.")] = None,
    min_similarity: Cosine = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, max=100, help="Maximum number.")] = 100,
) -> None:
    """Find stored near-duplicates of a text."""
    if (text is None) == (prediction is None):
        raise typer.BadParameter("give a text, or --prediction ID, not both")
    answer = api.client.post(
        "/v1/duplicates", text=text, prediction_id=prediction, min_similarity=min_similarity, k=k
    )
    show_near(answer, as_json=api.as_json)


@calls_api
def second_opinion(api: Api, prediction: PredictionId) -> None:
    """Compare a prediction with the feedback on the nearest texts."""
    answer = api.client.get(f"/v1/predictions/{prediction}/second-opinion")
    if api.as_json:
        show_json(answer)
        return
    show_record(
        {name: answer[name] for name in ("sentiment", "agreement", "suggests", "complete")}, as_json=False
    )
    show_table(answer["neighbours"], ("similarity", "sentiment", "text"), answer=answer, as_json=False)


@calls_api
def corrections(api: Api, prediction: PredictionId, min_similarity: Cosine = None) -> None:
    """List the near-duplicates of a corrected text whose predictions contradict the correction."""
    answer = api.client.get(f"/v1/predictions/{prediction}/corrections", min_similarity=min_similarity)
    rows = [
        {
            **fix,
            "prediction": fix["prediction"]["id"],
            "predicted": fix["prediction"]["sentiment"],
            "should be": answer["sentiment"],
        }
        for fix in answer["fixes"]
    ]
    columns = ("similarity", "predicted", "should be", "prediction", "text")
    show_table(rows, columns, answer=answer, as_json=api.as_json)


@calls_api
def diff(
    api: Api,
    version_from: Annotated[str, typer.Argument(metavar="FROM", help="The first version.")],
    version_to: Annotated[str, typer.Argument(metavar="TO", help="The second version.")],
    model: Annotated[str, typer.Option(help="Name of the model.")] = "sentiment",
    was: Annotated[Sentiment | None, typer.Option(help="Answer of the first version.")] = None,
    now: Annotated[Sentiment | None, typer.Option(help="Answer of the second version.")] = None,
    since: Since = None,
    until: Until = None,
    clusters: Annotated[int, typer.Option(min=1, max=50, help="Maximum number of clusters.")] = 8,
) -> None:
    """Show the texts on which two versions differ, clustered by meaning."""
    fields = {"from": version_from, "to": version_to, "was": was, "now": now}
    answer = api.client.get(f"/v1/models/{model}/diff", **fields, since=since, until=until, clusters=clusters)
    rows = [
        {
            "texts": cluster["texts"],
            "words": cluster["words"],
            "predicted": f"{example['from']['sentiment']} → {example['to']['sentiment']}",
            "text": example["text"],
        }
        for cluster in answer["clusters"]
        for example in cluster["examples"]
    ]
    if not api.as_json:
        print(f"{answer['differing']:,} of {answer['compared']:,} texts differ")
        first, matrix = f"v{version_from} \\ v{version_to}", answer["matrix"]
        show_table(
            [{first: before, **counts} for before, counts in matrix.items()],
            (first, *matrix),
            answer=answer,
            as_json=False,
        )
    show_table(rows, ("texts", "words", "predicted", "text"), answer=answer, as_json=api.as_json)


@calls_api
def review(
    api: Api,
    model: Model = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Maximum number.")] = 20,
) -> None:
    """List the texts for which feedback would be most useful."""
    answer = api.client.get("/v1/review", model=model, since=since, until=until, limit=limit)
    columns = (
        "score", "uncertainty", "density", "disagreement", "sentiment", "prediction_id", "text",
    )  # fmt: skip
    show_table(answer["items"], columns, answer=answer, as_json=api.as_json)


@calls_api
def topics(
    api: Api,
    model: Model = None,
    since: Since = None,
    until: Until = None,
    most: Annotated[int, typer.Option("--topics", min=1, max=50, help="Maximum number.")] = 12,
) -> None:
    """Show the topics of the texts in a window of time."""
    answer = api.client.get("/v1/topics", model=model, since=since, until=until, topics=most)
    rows = [
        {
            **topic,
            "accuracy": {
                f"v{each['model_version']}": f"{each['right']}/{each['judged']}" for each in topic["accuracy"]
            },
            "example": topic["examples"][0]["text"],
        }
        for topic in answer["topics"]
    ]
    columns = ("texts", "words", "sentiments", "accuracy", "example")
    show_table(rows, columns, answer=answer, as_json=api.as_json)


@calls_api
def drift(
    api: Api,
    model: Model = None,
    since: Since = None,
    until: Until = None,
    reference_since: Annotated[str | None, typer.Option(help="Start of the reference.")] = None,
    reference_until: Annotated[str | None, typer.Option(help="End of the reference.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Maximum number of new texts.")] = 10,
) -> None:
    """Compare a window of time (default: the last day) with a reference (default: the week before it)."""
    answer = api.client.get(
        "/v1/drift",
        model=model,
        since=since,
        until=until,
        reference_since=reference_since,
        reference_until=reference_until,
        limit=limit,
    )
    if api.as_json:
        show_json(answer)
        return
    texts = f"{answer['window']['sampled']} against {answer['reference']['sampled']}"
    if answer["embeddings"] is None:
        show_record({"texts": texts, "not compared": answer["reason"]}, as_json=False)
        return
    kernel: dict[str, Any] = answer["embeddings"]
    show_record(
        {
            "texts": texts,
            "embeddings": kernel.get("mmd2"),
            "p-value": kernel.get("p_value"),
            "drifted": kernel.get("drifted"),
            "sentiments": answer["stability"]["sentiments"],
            "confidences": answer["stability"]["confidences"],
        },
        as_json=False,
    )
    show_table(answer["new"], ("nearest", "sentiment", "text"), answer=answer, as_json=False)
