"""What stands before every route: keys, who may ask from where, and how much. As ASGI, so that nothing can go around it."""

import base64
import binascii
import hmac
import ipaddress
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moxin import storage
from serve.errors import ApiError

MAX_BODY_BYTES = 8 * 2**20
"""Of a request: a prompt of a million tokens and its JSON fit."""
OPEN_ROUTES = frozenset({"/health"})
HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"x-frame-options": b"DENY",
}
ASK_FOR_KEY = {
    "WWW-Authenticate": 'Basic realm="moxin: any name, and the key as the password", charset="UTF-8"'
}
"""A browser then asks for it, and sends it with whatever the chat page fetches."""


@dataclass(frozen=True)
class Rules:
    keys: tuple[str, ...] = ()
    """Any of them opens every route; without one all are open."""
    allowed_hosts: tuple[str, ...] = ()
    """Names by which this server may be asked beside localhost and addresses."""
    max_body_bytes: int = MAX_BODY_BYTES


def keys_from(environment: Mapping[str, str], file: str = "") -> tuple[str, ...]:
    """The keys of MOXIN_API_KEY (several with commas between them) and of a file with one a line; # begins a comment.

    Raises `ValueError` for a file that is missing, readable by others than its owner, or without a key, and for a key that
    no header can carry.
    """
    file = file or environment.get("MOXIN_API_KEYS_FILE", "")
    found = [key.strip() for key in environment.get("MOXIN_API_KEY", "").split(",")]
    if file:
        if not storage.exists(file):
            raise ValueError(f"{file}: no such file of API keys")
        if os.path.exists(file) and os.stat(file).st_mode & 0o077:
            raise ValueError(f"{file}: others can read these API keys; run chmod 600 {file}")
        lines = [line.partition("#")[0].strip() for line in storage.read_text(file).splitlines()]
        if not any(lines):
            raise ValueError(f"{file}: no API key in it; write one a line")
        found += lines
    keys = tuple(dict.fromkeys(key for key in found if key))
    for number, key in enumerate(keys):
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(f"API key {number + 1} has a space or a character that is not printable ASCII")
    return keys


class Guard:
    """The application behind the rules."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return

        async def send_hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS.items()]
            await send(message)

        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check(scope["method"], scope["path"], headers)
        except ApiError as error:
            await error.response()(scope, receive, send_hardened)
            return
        limited = _Limited(receive, self.rules.max_body_bytes)
        try:
            await self.app(scope, limited, send_hardened)
        except _TooLargeError:
            await _too_large(self.rules.max_body_bytes).response()(scope, receive, send_hardened)

    def _check(self, method: str, path: str, headers: Mapping[bytes, str]) -> None:
        host = headers.get(b"host", "")
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise ApiError(403, "a page of another site may not use this server", "cross_origin")
        if path not in OPEN_ROUTES:
            if not self.rules.keys:
                self._check_host(host)
            elif not self._has_key(headers):
                told = "missing or wrong API key; send it as a bearer token (Authorization: Bearer KEY)"
                raise ApiError(401, told, "invalid_api_key", headers=ASK_FOR_KEY if path == "/" else None)
        if method == "POST":
            kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise ApiError(
                    415, f"Content-Type is {kind!a:.80}; send application/json", "unsupported_media_type"
                )
        length = headers.get(b"content-length", "0")
        if length.isdecimal() and int(length) > self.rules.max_body_bytes:
            raise _too_large(self.rules.max_body_bytes)

    def _check_host(self, host: str) -> None:
        """Without keys a name that is not ours may be a stranger's whose address was turned to this machine (DNS rebinding):
        its page would then be of the same site as we are. An address cannot be turned."""
        name = urlsplit(f"//{host}").hostname or ""
        if name == "localhost" or name in self.rules.allowed_hosts or _is_address(name):
            return
        told = (
            f"Host is {name!a:.80}; without API keys only localhost, addresses and allowed_hosts are answered"
        )
        raise ApiError(403, told, "host_not_allowed")

    def _has_key(self, headers: Mapping[bytes, str]) -> bool:
        scheme, _, given = headers.get(b"authorization", "").partition(" ")
        given = given.strip()
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode("latin-1").partition(":")[2]
            except binascii.Error:
                given = ""
        elif scheme.lower() != "bearer":
            given = headers.get(b"x-api-key", "")
        return _is_one_of(given, self.rules.keys)


def _is_one_of(given: str, keys: Iterable[str]) -> bool:
    """Takes as long whichever key it is, if any, and wherever it differs."""
    right = False
    for key in keys:
        right |= hmac.compare_digest(given.encode(), key.encode())
    return right


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than {most} bytes", "body_too_large")


class _TooLargeError(BaseException):
    """Not an `Exception`: what reads the body must not take it for a fault of its own."""


class _Limited:
    """Receives a body up to a size, whatever its length was said to be."""

    def __init__(self, receive: Receive, most: int) -> None:
        self.receive, self.left = receive, most

    async def __call__(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.request":
            self.left -= len(message.get("body", b""))
            if self.left < 0:
                raise _TooLargeError
        return message
