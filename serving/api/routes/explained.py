"""A prediction's answer with a second opinion. The prediction is stored by then, so nothing here may fail it."""

from dataclasses import replace
from uuid import UUID

import orjson
from starlette.requests import Request

from serving.api import drawings, serializers
from serving.api.dependencies import caller_of, services_of
from serving.api.middleware import while_connected
from serving.errors import ServingError
from serving.predictions.service import Answer


async def explained(request: Request, answer: Answer) -> Answer:
    """The answer, with what judged texts nearby say; null if that can't be had now. Never kept: it is asked anew."""
    content = orjson.loads(answer.body)
    opinions = services_of(request).opinions
    try:
        found = await while_connected(request.receive, opinions.of(UUID(content["id"]), caller_of(request)))
        content["second_opinion"] = drawings.opinion(found)
    except ServingError:
        content["second_opinion"] = None
    return replace(answer, body=serializers.encode(content))
