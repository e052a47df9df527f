"""A client of the public API. Knows no route by name."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from serving.errors import ServingError


class RequestFailed(ServingError):
    """The platform refused, or couldn't be reached; `status` is None in the second case."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """Returns the decoded answer of each call, or raises RequestFailed with one line that says why."""

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        timeout: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise RequestFailed(f"{base_url!r} is no URL: write it as http://127.0.0.1:8000")
        self._base_url = base_url
        self._http = httpx.Client(
            base_url=base_url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=timeout,
            transport=transport,
            # The platform is reached directly, whatever proxy the environment names.
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **parameters: object) -> Any:
        """Send a GET; parameters that are None are left out."""
        return self._call("GET", path, params=_present(parameters))

    def post(self, path: str, **fields: object) -> Any:
        """Send a POST of JSON fields; fields that are None are left out."""
        return self._call("POST", path, json=_present(fields))

    def patch(self, path: str, **fields: object) -> Any:
        """Send a PATCH of JSON fields; fields that are None are left out."""
        return self._call("PATCH", path, json=_present(fields))

    def delete(self, path: str) -> Any:
        """Send a DELETE; the answer is None if it has no body."""
        return self._call("DELETE", path)

    def _call(self, method: str, path: str, **content: Any) -> Any:
        try:
            response = self._http.request(method, path, **content)
        except httpx.TimeoutException as error:
            raise RequestFailed(f"{self._base_url} did not answer in time: try again") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RequestFailed(
                f"nothing answers at {self._base_url}: start the platform with `valence up`, "
                "or name another with --url or VALENCE_URL"
            ) from error
        if not response.is_success:
            raise RequestFailed(_reason(response), status=response.status_code)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise RequestFailed(
                f"{self._base_url} answered something that isn't JSON: is this Valence's URL?",
                status=response.status_code,
            ) from error


def _present(values: Mapping[str, object]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _reason(response: httpx.Response) -> str:
    """One line from a problem document (RFC 9457), or from whatever came instead."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        return f"{response.status_code} {response.reason_phrase}"
    title = problem.get("title") or response.reason_phrase
    reason = f"{response.status_code} {title}"
    # The detail of a problem with faults is the first of them.
    if faults := problem.get("errors"):
        reason += f": {'; '.join(_fault(fault) for fault in faults)}"
    elif detail := problem.get("detail"):
        reason += f": {detail}"
    if response.status_code == httpx.codes.UNAUTHORIZED:
        reason += ": pass a key with --key or VALENCE_API_KEY"
    if wait := response.headers.get("Retry-After"):
        reason += f" in {wait} s" if reason.endswith("again") else f": try again in {wait} s"
    return reason


def _fault(fault: Mapping[str, Any]) -> str:
    loc = fault.get("loc", ())
    # Without "body" or "query", unless there is nothing else.
    place = ".".join(map(str, loc[1:] or loc))
    return f"{place}: {fault.get('msg')}"
