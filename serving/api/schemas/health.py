"""Responses about the platform's health."""

from typing import Literal

from serving.api.schemas.fields import ResponseBody


class HealthResponse(ResponseBody):
    """The platform's state."""

    status: Literal["live", "ready"]
