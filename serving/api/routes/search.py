"""Search: similar texts by meaning, by examples and by keywords; near-duplicates."""

from typing import Final

from fastapi import APIRouter
from starlette.requests import Request

from db.search.similarity import SimilarityFilters
from serving.api.dependencies import get_caller, get_services
from serving.api.middleware import while_connected
from serving.api.schemas.search import (
    DuplicatesRequest,
    ExampleBody,
    NeighbourCountsResponse,
    RanksResponse,
    SimilarRequest,
    SimilarResponse,
)
from serving.api.security import GuardedRoute, Parsed, requires
from serving.core.caller import Role
from serving.search.service import SearchExample, SearchQuery, count_predictions

_EXACT_WORK: Final = 9

router = APIRouter(route_class=GuardedRoute, tags=["similar"])


@router.post("/v1/similar")
@requires(
    Role.CLIENT,
    errors=(
        404,
        409,
    ),
    reads=0,
)
async def find_similar(request: Request, body: Parsed[SimilarRequest]) -> SimilarResponse:
    """Find stored texts by meaning, by keywords, or by both."""
    services, caller = get_services(request), get_caller(request)
    services.rate_limiter.take(caller, _work(body))
    search = SearchQuery(
        query=SearchExample(text=body.text, prediction_id=body.prediction_id, embedding=body.embedding),
        like=[_example(each) for each in body.like],
        unlike=[_example(each) for each in body.unlike],
        keywords=body.keywords,
        k=body.k,
        filters=SimilarityFilters(**dict(body.filters)),
        min_similarity=body.min_similarity,
        exact=body.exact,
    )
    result = await while_connected(request.receive, services.in_space().search.find_similar(search, caller))
    response = SimilarResponse.model_validate(result.neighbours)
    if result.ranks is not None:
        for text in response.results:
            text.ranks = RanksResponse.model_validate(result.ranks[text.text_id])
    if body.counts:
        response.counts = NeighbourCountsResponse.model_validate(count_predictions(result.neighbours))
    return response


@router.post("/v1/duplicates", response_model=SimilarResponse)
@requires(Role.CLIENT, errors=(404,), reads=0)
async def find_duplicates(request: Request, body: Parsed[DuplicatesRequest]) -> object:
    """Find the stored near-duplicates of a text."""
    services, caller = get_services(request), get_caller(request)
    services.rate_limiter.take(caller, 1)
    return await while_connected(
        request.receive,
        services.in_space().search.find_duplicates(
            _example(body), caller, min_similarity=body.min_similarity, k=body.k
        ),
    )


def _work(body: SimilarRequest) -> int:
    """Return the work of a search in texts: one for each that is embedded, and more for comparing every text."""
    texts = [body.text, *(each.text for each in (*body.like, *body.unlike))]
    embedded = sum(text is not None for text in texts)
    return max(1, embedded) + (_EXACT_WORK if body.exact else 0)


def _example(body: ExampleBody) -> SearchExample:
    return SearchExample(
        text=body.text, prediction_id=body.prediction_id, text_id=body.text_id, embedding=body.embedding
    )
