"""S3 through s3fs, made to outlive faults: what is tried again, how often, and what a person is told when that fails.

A request that fails (connection lost, 5xx, SlowDown, no answer in time) is made up to `REQUESTS` times, and the body of an
answer that breaks off is read up to `BODIES` times. Botocore's own retries are off: a client may make 100 of them before it
has to succeed again, which the parts of a few parallel uploads use up in one outage. Endpoint, keys and region come from
where botocore looks for them (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_DEFAULT_REGION`, a
profile, the machine's role).
"""

import asyncio
import logging
import os
import random
import time
from functools import partial
from typing import Any

import aiohttp
import botocore.exceptions as boto
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

REQUESTS = 8
MAX_WAIT_S = 20.0
"""The waits before the next request are random, up to 1, 2, 4, 8, 16, 20 and 20 s: 35 s together on average."""
BODIES = 8
PART_BYTES = 16 * 2**20
"""Of a multipart upload, and what is read ahead. 10,000 parts make files of up to 160 GiB; every open file keeps a part or
two in memory."""

_NETWORK = (
    *(boto.HTTPClientError, boto.ConnectionError),
    *(aiohttp.ClientError, asyncio.TimeoutError, ConnectionError),
)
_NO_BUCKET = {"NoSuchBucket", "InvalidBucketName"}
_GONE = {"404", "NoSuchKey", "NoSuchUpload"}
_REFUSED = {
    *(
        "401",
        "403",
        "AccessDenied",
        "AllAccessDisabled",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
    ),
    *("RequestTimeTooSkewed", "SignatureDoesNotMatch"),
}
_PASSING = {
    *("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "BandwidthLimitExceeded"),
    *(
        "RequestTimeout",
        "RequestTimeoutException",
        "IncompleteBody",
        "BadDigest",
        "XAmzContentSHA256Mismatch",
    ),
}
_log = logging.getLogger(__name__)


class S3(S3FileSystem):
    """`S3FileSystem` whose errors are `ValueError` for a user's mistake, `FileNotFoundError`, and `OSError` for the rest."""

    retries = BODIES  # of bodies only, since `_call_s3` is another one

    @classmethod
    def here(cls) -> "S3":
        """The one of this process."""
        return cls(
            use_listings_cache=False,  # what other machines wrote has to be seen
            default_block_size=PART_BYTES,
            max_concurrency=4,  # parts of one file that are sent, and held in memory, at a time
            config_kwargs={
                "retries": {"total_max_attempts": 1},
                "max_pool_connections": 64,
            },
        )

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        started = time.monotonic()
        for attempt in range(REQUESTS):
            try:
                await self.set_session()
                call = getattr(await self.get_s3(kwargs.get("Bucket")), method)
                return await call(**self._get_s3_method_kwargs(call, *akwarglist, **kwargs))
            except (*_NETWORK, boto.BotoCoreError, boto.ClientError, ValueError) as error:
                explained = self._explained(error, method, kwargs, attempt + 1, time.monotonic() - started)
                if not _passes(error) or attempt == REQUESTS - 1:
                    raise explained from error
                if attempt == 3:  # it takes its time: that should be seen
                    _log.warning("%s: trying again for a while", explained)
            await asyncio.sleep(random.random() * min(MAX_WAIT_S, 2.0**attempt))
        raise AssertionError

    call_s3 = sync_wrapper(_call_s3)

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        """S3 has no folders, and a bucket is never made in passing: this only finds out whether it may be used."""
        await self._call_s3("head_bucket", Bucket=self.split_path(path)[0])

    makedirs = sync_wrapper(_makedirs)

    async def _cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        try:
            # One request, so that a file which is replaced meanwhile is the old or the new one, never parts of both.
            return bytes(await super()._cat_file(path, *args, **{**kwargs, "max_concurrency": 1}))
        except _NETWORK as error:
            raise self._torn(error, path) from error

    async def _put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> None:
        part = max(PART_BYTES, -(-os.path.getsize(lpath) // 10_000))  # S3 takes 10,000 parts
        await super()._put_file(lpath, rpath, *args, **{**kwargs, "chunksize": part})

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        file = super()._open(path, mode, **kwargs)
        if mode == "rb":
            file.cache.fetcher = partial(self._fetch, path, file.size, file.cache.fetcher)
        return file

    def _fetch(self, path: str, size: int, fetch: Any, start: int, end: int) -> bytes:
        try:
            data = bytes(fetch(start, end))
        except _NETWORK as error:
            raise self._torn(error, path) from error
        if len(data) != min(end, size) - start:
            raise self._torn(f"bytes {start} to {min(end, size)} asked for, {len(data)} came", path)
        return data

    def _torn(self, error: Any, path: str) -> OSError:
        return OSError(
            f"s3://{path}: its content broke off {self.retries} times ({_text(error)}); {self._check()}"
        )

    def _explained(
        self, error: Exception, method: str, kwargs: dict[str, Any], attempts: int, seconds: float
    ) -> ValueError | OSError:
        bucket = kwargs.get("Bucket", "")
        name = f"s3://{bucket}/{kwargs.get('Key', kwargs.get('Prefix', ''))}".rstrip("/")
        if isinstance(error, boto.ClientError):
            code = str(error.response.get("Error", {}).get("Code"))
            if code in _NO_BUCKET or (method == "head_bucket" and code in _GONE):
                return ValueError(
                    f"{name}: there is no bucket {bucket!r} at {self._endpoint()}; make it there, or correct the URL"
                )
            if code in _GONE:
                return FileNotFoundError(f"{name}: no such file")
            if code in _REFUSED:
                return ValueError(
                    f"{name}: {self._endpoint()} refuses {method} ({_text(error)}); check AWS_ACCESS_KEY_ID, "
                    "AWS_SECRET_ACCESS_KEY (or the profile or role in use) and what they may do in this bucket"
                )
            if code == "PreconditionFailed":
                return OSError(f"{name}: replaced by another process while it was read; run the same again")
            if not _passes(error):
                return OSError(f"{name}: {method} failed: {_text(error)}")
        if _passes(error):
            tried = f"{attempts} times in {seconds:.0f} s"
            return OSError(f"{name}: {method} failed {tried} ({_text(error)}); {self._check()}")
        return ValueError(  # no or half a set of keys, a profile or an endpoint that cannot be
            f"{name}: {_text(error)}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL "
            "for a server that is not Amazon's"
        )

    def _endpoint(self) -> str:
        return str(self._s3.meta.endpoint_url) if self._s3 is not None else "the endpoint"

    def _check(self) -> str:
        return (
            f"check the network and that {self._endpoint()} (AWS_ENDPOINT_URL) works, then run the same again"
        )


def _passes(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if not isinstance(error, boto.ClientError):
        return isinstance(error, _NETWORK)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status in (429, 500, 502, 503, 504) or error.response.get("Error", {}).get("Code") in _PASSING


def _text(error: Any) -> str:
    """One line, also of errors without a text."""
    return " ".join(str(error).split()) or type(error).__name__
