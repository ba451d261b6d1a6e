"""Every error leaves in OpenAI's shape, `{"error": {message, type, param, code}}`, with the status its clients expect."""

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve.schemas import ErrorBody, ErrorDetail

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1


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
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status)
        kind = kind or ("invalid_request_error" if status < 500 else "server_error")
        self.status, self.headers = status, headers
        self.body = ErrorBody(error=ErrorDetail(message=message, type=kind, param=param, code=code))


class OverloadError(Exception):
    """The engine takes no more requests for now."""


class EngineError(Exception):
    """The engine died; its replica is to be replaced."""


def as_api_error(error: Exception) -> ApiError:
    """What the client is told about an exception; the cause of a 500 stays in our log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OverloadError):
        headers = {"Retry-After": str(RETRY_AFTER_S)}
        return ApiError(429, f"{error}; try again in a moment", "rate_limit_exceeded", headers=headers)
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return ApiError(400, f"the body is not JSON: {first['ctx']['error']}")
        path = [str(part) for part in first["loc"][1:]] or ["body"]
        got = "" if first["type"] == "missing" else f", got {first['input']!a:.80}"
        return ApiError(400, f"{'.'.join(path)}: {first['msg']}{got}", param=path[0])
    logger.error("request failed", exc_info=error)
    if isinstance(error, EngineError):
        return ApiError(500, "the engine failed while it worked on this request", "engine_failed")
    return ApiError(500, "internal error", "internal_error")


def install(app: FastAPI) -> None:
    """Makes the application answer every exception this way."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        told = as_api_error(error)
        return JSONResponse(told.body.model_dump(), told.status, told.headers)

    for kind in (ApiError, OverloadError, EngineError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, answer)
