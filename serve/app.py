"""The Ray Serve application: `serve run serve.app:app model=runs/demo/release-0123456789ab`.

With a Serve configuration file: `import_path: serve.app:app` and the settings under `args:`. The API key is read from the
environment variable MOXIN_API_KEY, never from arguments, which the dashboard shows.
"""

import os
from typing import Any

import torch
from pydantic import BaseModel, Field, ValidationError
from ray import serve
from ray.serve import Application

from moxin import storage
from moxin.config import nearest
from serve.engine_deployment import EngineReplica, Ingress

SPARE_CALLS = 64
"""Calls that a replica takes beyond its engine's limit, so that refusals and health checks come through at once."""
MAX_CONNECTIONS = 2000
"""Requests that one ingress holds, nearly all of them on their way to be refused."""
HEALTH_CHECK_PERIOD_S = 2.0
"""A dead engine is replaced after three failed checks."""


class Settings(BaseModel):
    """Arguments of the application; text is converted, for that is what `serve run` gives."""

    model: str
    """Release folder in Hugging Face format, local or s3://."""
    name: str = ""
    """What clients call the model; the folder's name where empty."""
    replicas: int = Field(1, ge=1)
    """Engines, each with the whole model."""
    gpus: int = Field(default_factory=lambda: int(torch.cuda.is_available()), ge=0, le=1)
    """GPUs of one engine: 1 or, to compute on the CPU, 0. Say 1 where this machine has none but the cluster's workers do."""
    max_batch: int = Field(8, ge=1)
    """Requests that one engine works on at once."""
    max_waiting: int = Field(32, ge=0)
    """Requests that wait for one engine; those beyond are answered with 429."""


def app(args: dict[str, Any]) -> Application:
    """The application that `args` describe. Raises `ValueError` for a wrong setting or a folder without a model."""
    if unknown := sorted(set(args) - set(Settings.model_fields)):
        raise ValueError(f"unknown setting {unknown[0]!r}; {nearest(unknown[0], Settings.model_fields)}")
    try:
        settings = Settings.model_validate(args)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{first['loc'][0]} = {first['input']!r}: {first['msg']}") from error
    url = storage.absolute(settings.model)
    for needed in ("config.json", "tokenizer.json"):
        if not storage.exists(storage.join(url, needed)):
            raise ValueError(f"{url} has no {needed}; give a release folder, as jobs/release.py makes")
    limit = settings.max_batch + settings.max_waiting
    engine = serve.deployment(
        name="engine",
        num_replicas=settings.replicas,
        max_ongoing_requests=limit + SPARE_CALLS,
        max_queued_requests=SPARE_CALLS,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        ray_actor_options={"num_cpus": 1, "num_gpus": settings.gpus},
    )(EngineReplica)
    ingress = serve.deployment(
        name="ingress",
        max_ongoing_requests=MAX_CONNECTIONS,
        ray_actor_options={"num_cpus": 0},  # it waits, mostly
    )(Ingress)
    name = settings.name or url.rsplit("/", 1)[-1]
    replicas = engine.bind(url, "cuda" if settings.gpus else "cpu", settings.max_batch, limit)
    return ingress.bind(url, name, os.environ.get("MOXIN_API_KEY", ""), replicas)
