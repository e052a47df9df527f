"""The HAProxy configuration that Ray Serve writes, corrected."""

import json
import re
from pathlib import Path

import pytest
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

from serving.deployments.haproxy.config import rewrite_config

CONFIG = """global
    stats socket /run/h/admin.sock mode 666 level admin expose-fd listeners
defaults
    mode http
    errorfile 502 /run/h/500.http
    errorfile 503 /run/h/500.http
    errorfile 504 /run/h/500.http
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8000
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path '%[path]' not found."
backend http-valence
    server SERVE_REPLICA_valence 127.0.0.1:30000 check
    server SERVE_PROXY_ACTOR-fallback-31fc 127.0.0.1:8500 check backup
listen stats
  bind *:8404
"""


@pytest.fixture
def config() -> str:
    return rewrite_config(CONFIG, bind="127.0.0.1", refusal=Path("/run/h/refusal.http"), room=400)


def test_every_port_binds_to_the_configured_address(config: str) -> None:
    assert re.findall(r"bind (\S+)", config) == ["127.0.0.1:9101", "127.0.0.1:8000", "127.0.0.1:8404"]


def test_the_admin_socket_is_private(config: str) -> None:
    assert "admin.sock mode 600 level admin" in config


def test_refusals_are_problem_json_and_never_come_from_the_fallback_proxy(config: str) -> None:
    assert config.count("/run/h/refusal.http") == 3
    assert "fallback" not in config
    assert "text/plain" not in config


def test_predictions_beyond_the_replicas_bound_get_429(config: str) -> None:
    (rule,) = re.findall(r".* return status 429 .*", config)
    assert "nbsrv(http-valence),mul(400)" in config
    assert "path_beg /v1/predict" in rule
    (body,) = re.findall(r'string "(.*)" hdr Retry-After', rule)
    assert json.loads(body.replace('\\"', '"'))["status"] == 429


def test_a_configuration_that_is_not_understood_is_refused() -> None:
    with pytest.raises(ValueError, match="stats socket"):
        rewrite_config(CONFIG.replace("mode 666", "mode 644"), bind="127.0.0.1", refusal=Path("/r"), room=1)


def test_the_template_of_the_installed_ray_still_has_the_lines_that_are_mended() -> None:
    for line in ("stats socket", "mode 666", "frontend prometheus", "errorfile 503", "listen stats"):
        assert line in HAPROXY_CONFIG_TEMPLATE
