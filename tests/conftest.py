"""Fixtures that several rooms share: one local Ray and one S3 server for the whole test session."""

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import s3 as live_s3
import torch

live_s3.claim()
s3, s3_server = live_s3.s3, live_s3.s3_server

if not torch.cuda.is_available():  # Triton reads it when it is first imported, by whichever room comes first
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray, started once, with token authentication."""
    from moxin import session

    session.start()
    yield
    session.stop()
