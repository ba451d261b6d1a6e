"""Every error leaves in OpenAI's shape, `{"error": {message, type, param, code}}`, with the status its clients expect."""

import logging
import re
import traceback
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve.bodies import ErrorBody, ErrorDetail

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1
KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
FIELD_OF = {
    "json_schema": "response_format",
    "regex": "response_format",
    "grammar": "response_format",
    "stop_ids": "stop_token_ids",
}
"""The engine's names of what clients call otherwise."""


class ApiError(Exception):
    """An answer other than 200. `param` is the offending field."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        kind = KINDS.get(status) or ("invalid_request_error" if status < 500 else "server_error")
        self.status, self.headers = status, headers
        self.body = ErrorBody(error=ErrorDetail(message=message, type=kind, param=param, code=code))

    def response(self) -> JSONResponse:
        return JSONResponse(self.body.model_dump(), self.status, self.headers)


class OverloadError(Exception):
    """The engine takes no more requests for now."""


class InvalidRequestError(Exception):
    """The engine cannot answer this request; the message begins with the field."""


class EngineError(Exception):
    """The engine died; its replica is to be replaced."""


def as_api_error(error: Exception) -> ApiError:
    """What the client is told about an exception; the cause of a 500 stays in our log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OverloadError):
        headers = {"Retry-After": str(RETRY_AFTER_S)}
        return ApiError(429, f"{error}; try again in a moment", "rate_limit_exceeded", headers=headers)
    if isinstance(error, InvalidRequestError):
        named = re.match(r"(?:the )?(\w+)", str(error))
        field = named[1] if named else None
        return ApiError(400, str(error), param=FIELD_OF.get(field or "", field))
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, RequestValidationError):
        return _of_validation(error)
    logger.error("request failed: %s", one_line(error))
    if isinstance(error, EngineError):
        return ApiError(500, "the engine failed while it worked on this request", "engine_failed")
    return ApiError(500, "internal error", "internal_error")


def _of_validation(error: RequestValidationError) -> ApiError:
    # Where a field may be one of several kinds, each says what it misses; the one that got furthest knows best.
    first = max(error.errors(), key=lambda found: len(found["loc"]))
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['ctx']['error']}")
    path = [str(part) for part in first["loc"][1:] if not _names_a_kind(str(part))] or ["body"]
    message = first["msg"].removeprefix("Value error, ")
    field = path[0]
    if path == ["body"] and (named := re.match(r"[a-z_]+(?= )|[a-z_]+(?=:)", message)) and "_" in named[0]:
        field = named[0]  # a rule about several fields begins with the name of the one that is wrong
    got = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!a:.80}"
    return ApiError(400, f"{'.'.join(path)}: {message}{got}", param=field)


def _names_a_kind(part: str) -> bool:
    """Whether a part of pydantic's path is one of the kinds that a field may have, and no name that the client wrote."""
    return part in ("str", "int", "bool", "constrained-int") or bool(re.search(r"[\[(]", part))


def one_line(error: BaseException) -> str:
    """An exception with its traceback for a log: what a client wrote cannot begin a line of its own."""
    return ascii("".join(traceback.format_exception(error)))


def install(app: FastAPI) -> None:
    """Makes the application answer every exception this way."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    for kind in (
        ApiError,
        OverloadError,
        InvalidRequestError,
        EngineError,
        HTTPException,
        RequestValidationError,
        Exception,
    ):
        app.add_exception_handler(kind, answer)
