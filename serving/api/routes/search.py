"""Similar texts: search what is stored by meaning, by examples and by words; near-duplicates."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from db.search.similarity import SimilarityFilters
from serving.api import serializers
from serving.api.dependencies import body_of, caller_of, services_of
from serving.api.middleware import while_connected
from serving.api.schemas.fields import parse
from serving.api.schemas.search import DuplicatesRequest, ExampleRequest, SimilarAnswer, SimilarRequest
from serving.api.security import GuardedRoute, requires
from serving.core.caller import Role
from serving.search.service import SearchExample, SearchQuery, SearchResult, count_predictions

router = APIRouter(route_class=GuardedRoute, tags=["similar"])


@router.post("/v1/similar", responses={200: {"model": SimilarAnswer}})
@requires(Role.CLIENT, body=SimilarRequest, errors=(404, 409, 429))
async def similar(request: Request) -> Response:
    """Find stored texts by meaning."""
    body = parse(SimilarRequest, body_of(request))
    services, caller = services_of(request), caller_of(request)
    services.rate_limiter.take(caller, 1)
    filters = body.filters
    search = SearchQuery(
        query=SearchExample(text=body.text, prediction_id=body.prediction_id, embedding=body.embedding),
        like=[_example(each) for each in body.like],
        unlike=[_example(each) for each in body.unlike],
        keywords=body.keywords,
        k=body.k,
        filters=SimilarityFilters(
            sentiment=filters.sentiment,
            model_version=filters.model_version,
            user_id=filters.user_id,
            since=filters.since,
            until=filters.until,
            has_feedback=filters.has_feedback,
            is_correct=filters.is_correct,
        ),
        min_similarity=body.min_similarity,
        exact=body.exact,
    )
    found = await while_connected(request.receive, services.search.find_similar(search, caller))
    counts = count_predictions(found.neighbours) if body.counts else None
    return serializers.json_response(serializers.found(found, counts))


@router.post("/v1/duplicates", responses={200: {"model": SimilarAnswer}})
@requires(Role.CLIENT, body=DuplicatesRequest, errors=(404, 429))
async def duplicates(request: Request) -> Response:
    """Find the stored near-duplicates of a text."""
    body = parse(DuplicatesRequest, body_of(request))
    services, caller = services_of(request), caller_of(request)
    services.rate_limiter.take(caller, 1)
    found = await while_connected(
        request.receive,
        services.search.find_duplicates(_example(body), caller, min_similarity=body.min_similarity, k=body.k),
    )
    return serializers.json_response(serializers.found(SearchResult(neighbours=found), None))


def _example(body: ExampleRequest) -> SearchExample:
    return SearchExample(
        text=body.text, prediction_id=body.prediction_id, text_id=body.text_id, embedding=body.embedding
    )
