"""The response while no replica can answer, for HAProxy and for its fallback."""

BODY = (
    '{"type":"about:blank","title":"Service Unavailable","status":503,'
    '"detail":"no replica could answer: send the request again","instance":""}'
)
REFUSAL = (
    "HTTP/1.1 503 Service Unavailable\r\n"
    "Content-Type: application/problem+json\r\n"
    f"Content-Length: {len(BODY)}\r\n"
    "Retry-After: 1\r\n"
    "Cache-Control: no-store\r\n"
    f"\r\n{BODY}"
)
