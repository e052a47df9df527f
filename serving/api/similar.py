"""Similar texts: search what is stored by meaning."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from db.similarity import SimilarityFilters
from serving.api import render
from serving.api.access import GuardedRoute, requires
from serving.api.deps import body_of, caller_of, services_of
from serving.api.edge import while_connected
from serving.api.schemas.data import SimilarAnswer, SimilarRequest
from serving.api.schemas.fields import parse
from serving.caller import Role
from serving.memory import Search

router = APIRouter(route_class=GuardedRoute, tags=["similar"])


@router.post("/v1/similar", responses={200: {"model": SimilarAnswer}})
@requires(Role.CLIENT, body=SimilarRequest, errors=(404, 429))
async def similar(request: Request) -> Response:
    """Find stored texts by meaning."""
    body = parse(SimilarRequest, body_of(request))
    services, caller = services_of(request), caller_of(request)
    services.limits.take(caller, 1)
    filters = body.filters
    search = Search(
        text=body.text,
        prediction_id=body.prediction_id,
        embedding=body.embedding,
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
    found = await while_connected(request.receive, services.memory.similar(search, caller))
    return render.json_response(render.neighbours(found))
