"""Keys, hosts, headers and sizes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import openai
import pytest
from server.serving import CHAT, HI, scripted, served

from glm3sdk.errors import UserError
from glm3sdk.server import create_app


def test_a_key_is_asked_for_where_there_is_one(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    with served(scripted("ok"), api_key="geheim-1") as server:
        assert server.client.models.list().data[0].id == "glm3"
        stranger = server.client.with_options(api_key="geheim-2")
        with pytest.raises(openai.AuthenticationError) as caught:
            stranger.chat.completions.create(model="glm3", messages=HI)
        assert caught.value.code == "invalid_api_key"
        for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/nothing"):
            status, headers, _ = server.ask("GET", path)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
        for wrong in ("Basic geheim-1", "Bearer", "Bearer geheim", "geheim-1", "Bearer gehe\xefm"):
            assert server.ask("GET", "/v1/models", Authorization=wrong)[0] == 401
        assert server.ask("GET", "/v1/models", Authorization="bearer geheim-1")[0] == 200
        assert server.ask("GET", "/healthz")[0] == 200
        assert server.ask("GET", "/readyz")[0] == 200
    assert "geheim-1" not in "".join(
        record.getMessage() for record in caplog.records if record.name.startswith("glm3sdk")
    )


def test_only_hosts_that_were_allowed_are_answered():
    with served(scripted("ok"), allowed_hosts=["localhost", "127.0.0.1", "[::1]"]) as server:
        assert server.ask("GET", "/healthz")[0] == 200
        for host in ("localhost", "LOCALHOST:80", "[::1]", "[::1]:8000"):
            assert server.ask("GET", "/healthz", Host=host)[0] == 200
        for host in ("evil.example", "localhost.evil.example:80", ""):
            assert server.ask("GET", "/healthz", Host=host)[0] == 421


def test_pages_of_other_origins_are_let_in_by_name_alone():
    preflight = {"Access_Control_Request_Method": "POST", "Origin": "https://app.example"}
    with served(scripted("ok")) as server:
        _, headers, _ = server.ask("OPTIONS", CHAT, **preflight)
        assert not any(name.startswith("access-control") for name in headers)
    with served(scripted("ok"), cors_origins=["https://app.example"], api_key="k") as server:
        status, headers, _ = server.ask("OPTIONS", CHAT, **preflight)
        assert (status, headers["access-control-allow-origin"]) == (200, "https://app.example")
        _, headers, _ = server.ask(
            "OPTIONS", CHAT, **{**preflight, "Origin": "https://evil.example"}
        )
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("path", ["/", "/healthz", "/v1/models", "/metrics", "/<script>", CHAT])
def test_every_answer_carries_the_security_headers_and_is_no_html(path: str):
    with served(scripted("ok"), static=None) as server:
        _, headers, body = server.ask("GET", path)
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["content-type"].partition(";")[0] in ("application/json", "text/plain")
    assert b"<script>" not in body or headers["content-type"] == "application/json"


def test_a_page_is_served_where_there_is_one(tmp_path: Path):
    (tmp_path / "index.html").write_text("<!doctype html><title>glm3</title>", "utf-8")
    (tmp_path / "page.js").write_text("'use strict'", "utf-8")
    (tmp_path.parent / "secret.txt").write_text("no", "utf-8")
    with served(scripted("ok"), static=tmp_path, api_key="k") as server:
        status, headers, body = server.ask("GET", "/")
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert body.startswith(b"<!doctype html>")
        assert "default-src 'self'" in headers["content-security-policy"]
        _, headers, script = server.ask("GET", "/static/page.js")
        assert (script, headers["cache-control"]) == (b"'use strict'", "no-store")
        for path in (
            "/static/../../secret.txt",
            "/static/%2e%2e/secret.txt",
            "/static//etc/passwd",
        ):
            assert server.ask("GET", path)[0] in (401, 404)


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not():
    with served(scripted("ok"), max_body_bytes=1000) as server:
        body = json.dumps({"messages": [{"role": "user", "content": "x" * 2000}]}).encode()
        status, _, answer = server.ask("POST", CHAT, body)
        assert (status, json.loads(answer)["error"]["code"]) == (413, "body_too_large")
        chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        assert server.ask("POST", CHAT, chunked, Transfer_Encoding="chunked")[0] == 413
        assert server.ask("POST", CHAT, {"messages": HI})[0] == 200


def test_a_body_that_a_form_could_send_is_refused():
    with served(scripted("ok")) as server:
        body = json.dumps({"messages": HI}).encode()
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            assert server.ask("POST", CHAT, body, Content_Type=kind)[0] == 415
        assert (
            server.ask("POST", CHAT, body, Content_Type="Application/JSON; charset=utf-8")[0] == 200
        )


def test_wrong_paths_and_methods_are_answered_in_the_api_s_shape():
    with served(scripted("ok")) as server:
        status, _, body = server.ask("GET", "/v1/nothing")
        assert (status, json.loads(body)["error"]["type"]) == (404, "invalid_request_error")
        assert server.ask("GET", CHAT)[0] == 405
        assert server.ask("POST", "/healthz", {})[0] == 405


def test_a_closed_service_is_not_ready():
    service = scripted("ok")
    with served(service) as server:
        assert server.ask("GET", "/readyz")[0] == 200
        service.close()
        assert (server.ask("GET", "/readyz")[0], server.ask("GET", "/healthz")[0]) == (503, 200)
        status, headers, _ = server.ask("POST", CHAT, {"messages": HI})
        assert (status, headers["retry-after"]) == (503, "5")


@pytest.mark.parametrize(
    "options",
    [{"api_key": " "}, {"max_queue": -1}, {"max_body_bytes": 0}, {"request_timeout_s": 0}],
)
def test_limits_that_let_nothing_through_are_refused(options):
    with scripted("ok") as service, pytest.raises(UserError):
        create_app(service, model_name="glm3", **options)
