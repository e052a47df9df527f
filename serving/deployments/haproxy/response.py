"""The refusals of what stands before the application, in the form of each protocol. Imports nothing heavy."""

import json
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A refusal with its status, the name of its kind, its title and its detail."""

    status: int
    name: str
    title: str
    detail: str

    @property
    def problem(self) -> str:
        """Return a problem document."""
        return _dump(
            type=f"urn:valence:problem:{self.name}",
            title=self.title,
            status=self.status,
            detail=self.detail,
            instance="",
        )

    @property
    def inference(self) -> str:
        """Return the form of the Open Inference Protocol."""
        return _dump(error=self.detail)

    @property
    def openai(self) -> str:
        """Return OpenAI's form."""
        kind = "rate_limit_error" if self.status == 429 else "server_error"
        if self.status < 429 or self.status == 431:
            kind = "invalid_request_error"
        return _dump(
            error={"message": self.detail, "type": kind, "param": None, "code": self.name.replace("-", "_")}
        )

    @property
    def oauth(self) -> str:
        """Return the form of RFC 6749."""
        error = "invalid_request" if self.status < 500 else "temporarily_unavailable"
        return _dump(error=error, error_description=self.detail)

    def form(self, path: str) -> tuple[str, str]:
        """Return the media type and the body for a route."""
        if path == "/v2" or path.startswith("/v2/"):
            return "application/json", self.inference
        if path == "/v1/embeddings":
            return "application/json", self.openai
        if path == "/v1/token":
            return "application/json", self.oauth
        return "application/problem+json", self.problem


def _dump(**members: object) -> str:
    return json.dumps(members, separators=(",", ":"))


UNAVAILABLE = Refusal(
    status=503, name="not-ready", title="Not ready", detail="no replica could answer: send the request again"
)
OVERLOADED = Refusal(
    status=429,
    name="overloaded",
    title="Too many requests",
    detail="too many requests are being answered: slow down and send again",
)
LONG_URL = Refusal(
    status=414,
    name="too-large",
    title="Too large",
    detail="the URL is longer than 16,384 bytes: send less in it",
)
LARGE_HEADERS = Refusal(
    status=431,
    name="too-large",
    title="Too large",
    detail="the headers are more than 100 or larger than 32,768 bytes: send fewer",
)
NO_PATH = Refusal(
    status=400,
    name="malformed",
    title="Request malformed",
    detail="the target of the request must be a path: begin it with /",
)
NO_ROUTE = Refusal(
    status=404, name="not-found", title="Not found", detail="there is nothing here: /docs lists the routes"
)
TIMED_OUT = Refusal(
    status=503, name="not-ready", title="Not ready", detail="the request took too long: send it again"
)
UNEXPECTED = Refusal(
    status=500,
    name="unexpected",
    title="Unexpected error",
    detail="the request could not be served: the log has the reason under its id",
)
TOO_SLOW = Refusal(
    status=408,
    name="too-slow",
    title="Request too slow",
    detail="the body didn't come in time: send it again",
)
REFUSAL = (
    "HTTP/1.1 503 Service Unavailable\r\n"
    "Content-Type: application/problem+json\r\n"
    f"Content-Length: {len(UNAVAILABLE.problem)}\r\n"
    "Retry-After: 1\r\n"
    "Cache-Control: no-store\r\n"
    f"\r\n{UNAVAILABLE.problem}"
)
