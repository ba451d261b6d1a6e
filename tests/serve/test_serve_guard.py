"""What stands before the routes: keys, hosts, origins, sizes; and what reaches the log."""

import base64
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serve_helpers import FakeEngine, served, tiny_tokenizer
from starlette.routing import Route

from serve import api
from serve.engine_loop import EngineLoop
from serve.guard import keys_from
from serve.params import ModelInfo

TOKENIZER = tiny_tokenizer()
QUESTION = {"messages": [{"role": "user", "content": "Who owns the dog?"}]}


@pytest.fixture(scope="module")
def locked() -> Iterator[str]:
    with served(FakeEngine(TOKENIZER, "yes"), TOKENIZER, keys=("first", "second")) as (url, _):
        yield url


@pytest.fixture(scope="module")
def open_url() -> Iterator[str]:
    rules: dict[str, Any] = {"allowed_hosts": ("moxin.test",), "max_body_bytes": 2000}
    with served(FakeEngine(TOKENIZER, "yes"), TOKENIZER, **rules) as (url, _):
        yield url


def all_routes() -> list[tuple[str, str]]:
    model = api.ServedModel(ModelInfo("tiny", TOKENIZER, 128, 1), EngineLoop(FakeEngine(TOKENIZER, ""), 1))
    app = api.routes(api.Models([model]))
    assert {"/health", "/v1/embeddings", "/"} <= {
        route.path for route in app.routes if isinstance(route, Route)
    }
    return [
        (method, route.path.replace("{name:path}", "tiny"))
        for route in app.routes
        if isinstance(route, Route)
        for method in sorted(route.methods or ())
    ]


def test_every_route_but_health_asks_for_a_key(locked: str) -> None:
    """Whatever routes the application has, also those that FastAPI adds, and some that do not exist."""
    for method, path in [
        *all_routes(),
        ("GET", "/nothing"),
        ("PUT", "/v1/models"),
        ("GET", "//health"),
        ("GET", "/Health"),
    ]:
        answer = httpx.request(method, locked + path, json={} if method == "POST" else None)
        if path == "/health":
            assert answer.status_code in (200, 405), path
        else:
            assert answer.status_code == 401, (method, path)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer first"}, 200),
        ({"Authorization": "bearer second"}, 200),
        ({"X-API-Key": "second"}, 200),
        ({"Authorization": "Basic " + base64.b64encode(b"anyone:first").decode()}, 200),
        ({"Authorization": "Basic " + base64.b64encode(b"first").decode()}, 401),
        ({"Authorization": "Basic %%%"}, 401),
        ({"Authorization": "Bearer firs"}, 401),
        ({"Authorization": "Bearer firstsecond"}, 401),
        ({"Authorization": "Bearer x"}, 401),
        ({"Authorization": "first"}, 401),
        ({}, 401),
    ],
)
def test_ways_to_send_a_key(locked: str, headers: dict[str, str], status: int) -> None:
    answer = httpx.post(f"{locked}/v1/chat/completions", json=QUESTION, headers=headers)
    assert answer.status_code == status
    if status == 401:
        assert answer.json()["error"]["code"] == "invalid_api_key"


def test_a_browser_is_asked_for_the_key_by_its_page_alone(locked: str) -> None:
    assert httpx.get(locked).headers["www-authenticate"].startswith("Basic")
    assert "www-authenticate" not in httpx.get(f"{locked}/v1/models").headers


def test_keys_from_environment_and_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\none\ntwo # of the tests\n\n")
    file.chmod(0o600)
    assert keys_from({"MOXIN_API_KEY": "zero, one"}, str(file)) == ("zero", "one", "two")
    assert keys_from({"MOXIN_API_KEYS_FILE": str(file)}) == ("one", "two")
    assert keys_from({}) == ()
    file.chmod(0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        keys_from({}, str(file))
    file.chmod(0o600)
    file.write_text("# none\n")
    with pytest.raises(ValueError, match="no API key in it"):
        keys_from({}, str(file))
    with pytest.raises(ValueError, match="no such file"):
        keys_from({}, str(tmp_path / "other"))
    with pytest.raises(ValueError, match="printable ASCII"):
        keys_from({"MOXIN_API_KEY": "schlüssel"})


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("moxin.test", 200), ("evil.test", 403), ("", 403),
     ("localhost.evil.test", 403)],
)  # fmt: skip
def test_names_that_may_be_turned_to_this_machine_are_refused(open_url: str, host: str, status: int) -> None:
    answer = httpx.get(f"{open_url}/v1/models", headers={"Host": host})
    assert answer.status_code == status
    assert httpx.get(f"{open_url}/health", headers={"Host": host}).status_code == 200


def test_pages_of_other_sites_are_refused(open_url: str, locked: str) -> None:
    for url, key in ((open_url, {}), (locked, {"Authorization": "Bearer first"})):
        foreign = httpx.post(
            f"{url}/v1/chat/completions", json=QUESTION, headers={"Origin": "http://evil.test", **key}
        )
        assert foreign.status_code == 403
        own = httpx.post(f"{url}/v1/chat/completions", json=QUESTION, headers={"Origin": url, **key})
        assert own.status_code == 200
        assert not any(name.startswith("access-control") for name in own.headers)
        asked = httpx.options(f"{url}/v1/chat/completions", headers={"Origin": "http://evil.test", **key})
        assert asked.status_code == 403
        simple = httpx.post(
            f"{url}/v1/chat/completions", content="{}", headers={"Content-Type": "text/plain", **key}
        )
        assert simple.status_code == 415  # what a form on another page could send


def test_bodies_are_limited_whatever_they_say(open_url: str) -> None:
    big = b'{"messages": [{"role": "user", "content": "' + b"x" * 3000 + b'"}]}'
    kind = {"Content-Type": "application/json"}
    assert httpx.post(f"{open_url}/v1/chat/completions", content=big, headers=kind).status_code == 413

    def in_parts() -> Iterator[bytes]:
        for at in range(0, len(big), 500):
            yield big[at : at + 500]

    answer = httpx.post(f"{open_url}/v1/chat/completions", content=in_parts(), headers=kind)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


def test_json_that_is_nested_without_end(locked: str) -> None:
    headers = {"Content-Type": "application/json", "Authorization": "Bearer first"}
    for content in (b"[" * 200_000, b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"):
        answer = httpx.post(f"{locked}/v1/chat/completions", content=content, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]
    assert httpx.get(f"{locked}/health").status_code == 200


def test_nothing_that_a_client_writes_begins_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The engine dies with a message of the client's."""
    engine = FakeEngine(TOKENIZER, "yes")

    def step() -> Any:
        (request,) = engine.requests.values()
        raise RuntimeError(TOKENIZER.decode(request.tokens))

    engine.step = step  # type: ignore[method-assign]
    with caplog.at_level(logging.DEBUG), served(engine, TOKENIZER) as (url, _):
        body = {"prompt": "x\nFORGED \x1b[31m line", "model": "tiny"}
        assert httpx.post(f"{url}/v1/completions", json=body).status_code == 500
        httpx.get(f"{url}/v1/models/a%0aFORGED%1b[31m", headers={"User-Agent": "u"})
    written = "\n".join(
        caplog.handler.format(record) for record in caplog.records if "httpx" not in record.name
    )
    assert "FORGED" in written
    assert not any(line.startswith("FORGED") for line in written.splitlines())
    assert "\x1b" not in written


def test_hardened_headers(open_url: str) -> None:
    page = httpx.get(open_url)
    assert page.headers["x-frame-options"] == "DENY"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert httpx.get(f"{open_url}/health").headers["x-content-type-options"] == "nosniff"


def test_no_pickle_and_no_code_from_checkpoints() -> None:
    """Nothing of ours reads pickles or torch files."""
    root = Path(__file__).parents[2]
    for file in [
        *(root / "serve").glob("*.py"),
        *(root / "moxin" / "infer").glob("*.py"),
        *(root / "jobs").glob("*.py"),
    ]:
        text = file.read_text()
        for word in ("import pickle", "cloudpickle", "torch.load(", "trust_remote_code", "eval(", "exec("):
            assert word not in text.replace("model.eval()", ""), (os.path.basename(file), word)
