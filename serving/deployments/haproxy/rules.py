"""The rules that Valence adds to HAProxy's configuration: deadlines, admission, and refusals in each protocol's form.

Text only; `config.py` puts it where it belongs. Imports nothing heavy.
"""

from serving.deployments.haproxy.response import (
    LARGE_HEADERS,
    LONG_URL,
    NO_PATH,
    OVERLOADED,
    TOO_SLOW,
    UNAVAILABLE,
    Refusal,
)

_REQUEST_SECONDS = 10
_CLIENT_SECONDS = 60
# Larger than what is served, so that what is too large is refused in JSON: beyond it HAProxy sends a page of its own.
_BUFFER_BYTES = 96 * 1024
_BUFFER_HEADERS = 512
_MOST_HEADERS = 100
_MOST_BYTES = 16 * 1024

MARK = "# As Valence wants it."
GLOBAL = f"""
    {MARK}
    tune.bufsize {_BUFFER_BYTES}
    tune.http.maxhdr {_BUFFER_HEADERS}"""
DEFAULTS = f"""
    timeout http-request {_REQUEST_SECONDS}s
    timeout client {_CLIENT_SECONDS}s
    # A browser opens connections that it may never use.
    option http-ignore-probes"""

_REQUEST_ID = "^[A-Za-z0-9._-]{1,128}$"
# In the frontend: every answer has a request id: the application's, else the caller's if valid, else a new one.
_IDENTITY = f"""
    unique-id-format %[uuid]
    http-request set-var(txn.request_id) unique-id
    http-request set-var(txn.request_id) req.hdr(x-request-id) if {{ req.hdr(x-request-id) -m reg {_REQUEST_ID} }}
    http-request set-header x-request-id %[var(txn.request_id)]
    http-after-response set-var(txn.request_id) res.hdr(x-request-id,1) if {{ res.hdr(x-request-id) -m found }}
    http-after-response set-header x-request-id %[var(txn.request_id)]
    http-after-response set-header x-content-type-options nosniff"""
# Ray obeys these headers, whoever sends them. The address is for the log and for the limit of refused credentials.
_HEADERS = (
    "x-request-timeout-seconds",
    "x-request-disconnect-disabled",
    "serve_multiplexed_model_id",
    "serve-multiplexed-model-id",
    "x-session-id",
    "x_session_id",
)
_CLEANING = (
    "".join(f"\n    http-request del-header {name}" for name in _HEADERS)
    + """
    http-request del-header x-serve-router- -m beg
    option forwardfor"""
)
# As the application sees it: decoded once. The application knows neither other cases nor double slashes.
_PATH = """
    http-request set-var(txn.path) path,url_dec"""
_COMPUTING = (
    "^/v1/(predict(/batch)?|embeddings|similar|duplicates|topics|review|drift)$"
    "|^/v1/predictions/[^/]+/(corrections|second-opinion)$|^/v1/models/.+/diff$|^/v2/models/.+/infer$"
)
_EMBEDDINGS = "{ var(txn.path) -m str /v1/embeddings }"
_TOKEN = "{ var(txn.path) -m str /v1/token }"  # noqa: S105  (a path)
_INFERENCE = "{ var(txn.path) -m reg ^/v2(/|$) }"
# A body, or as much of it as the buffer holds: until it is there, the request takes no place of a replica.
_WAITING = f"""
    http-request wait-for-body time {_REQUEST_SECONDS}s unless METH_GET"""
# Predictions and the like beyond the capacity of the ingress replicas are refused here, where that costs them nothing.
_COUNTING = """
    http-request set-var(txn.room) nbsrv({backend}),mul({room})
    http-request set-var(txn.excess) be_conn({backend}),sub(txn.room)"""
_ADMISSION = f"""
    acl is_full var(txn.excess) -m int ge 0
    acl is_computing var(txn.path) -m reg {_COMPUTING}"""
# Connections of one address, if a setting bounds them: clients may share one.
_SOURCES = """
    stick-table type ipv6 size 100k expire 1m store conn_cur
    tcp-request connection track-sc0 src
    tcp-request connection reject if {{ sc0_conn_cur gt {most} }}"""


def _quote(body: str) -> str:
    """Return a JSON body as a string of the configuration."""
    return '"' + body.replace('"', '\\"') + '"'


def _forms(refusal: Refusal) -> tuple[tuple[str, str, str], ...]:
    """Return the media type and the body of each protocol, and the condition of its routes; the last is everybody's."""
    return (
        ("application/json", refusal.inference, _INFERENCE),
        ("application/json", refusal.openai, _EMBEDDINGS),
        ("application/json", refusal.oauth, _TOKEN),
        ("application/problem+json", refusal.problem, "TRUE"),
    )


def refuse(refusal: Refusal, condition: str, *, headers: str = "") -> str:
    """Return the rules that refuse what meets this condition, in the form of its route."""
    return "".join(
        f"\n    http-request return status {refusal.status} content-type {media_type} string {_quote(body)} "
        f"hdr Cache-Control no-store{headers} if {condition} {route}"
        for media_type, body, route in _forms(refusal)
    )


def _keep(name: str, refusal: Refusal) -> str:
    """Return the rules that keep a refusal, in the form of the request's route, for HAProxy's own errors."""
    return "".join(
        f"\n    http-request set-var-fmt(txn.{name}) {_quote(body)} if {route}"
        for _, body, route in reversed(_forms(refusal))
    )


def _own_error(status: int, name: str, headers: str) -> str:
    return (
        f'    http-error status {status} content-type application/problem+json lf-string "%[var(txn.{name})]" '
        f"hdr Cache-Control no-store{headers}"
    )


_RETRY = " hdr Retry-After 1"
_OWN = (
    _keep("unavailable", UNAVAILABLE)
    + _keep("too_slow", TOO_SLOW)
    + f"""
    acl is_json {_INFERENCE[2:-2]}
    acl is_json {_EMBEDDINGS[2:-2]}
    acl is_json {_TOKEN[2:-2]}
    http-after-response set-header content-type application/json if is_json {{ status 408 500:504 }}"""
)
_OPTIONS = (
    '\n    http-request return status 204 hdr Allow "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS" '
    "if METH_OPTIONS { url -m str * }"
)
_SHAPE = (
    refuse(LONG_URL, f"{{ url,length gt {_MOST_BYTES} }}")
    + refuse(LARGE_HEADERS, f"{{ req.hdrs,length gt {2 * _MOST_BYTES} }}")
    + refuse(LARGE_HEADERS, f"{{ req.fhdr_cnt gt {_MOST_HEADERS} }}")
    + _OPTIONS
    + refuse(NO_PATH, "!{ path_beg / }")
)

OWN_ERRORS = "".join(
    f"{_own_error(status, name, headers)}\n"
    for status, name, headers in (
        (408, "too_slow", ""),
        (502, "unavailable", _RETRY),
        (503, "unavailable", _RETRY),
        (504, "unavailable", _RETRY),
    )
)
NO_ROUTE = refuse(UNAVAILABLE, "TRUE", headers=_RETRY).lstrip()


def build_frontend(backend: str | None, *, room: int, sources: int) -> str:
    """Return the rules of the frontend; `backend` is the application's, None while it has none."""
    rules = (_SOURCES.format(most=sources) if sources else "") + _IDENTITY + _CLEANING + _PATH + _OWN + _SHAPE
    if backend is None:
        return rules + _WAITING
    rules += refuse(UNAVAILABLE, f"{{ nbsrv({backend}) eq 0 }}", headers=_RETRY)
    admission = _COUNTING.format(backend=backend, room=room)
    admission += refuse(OVERLOADED, "is_computing is_full", headers=_RETRY)
    # Once before the body, which may never come, and once after it: many may have waited for theirs side by side.
    return rules + _ADMISSION + admission + _WAITING + admission
