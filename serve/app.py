"""The Ray Serve application: `serve run serve.app:app model=runs/demo/release-0123456789ab`.

With a Serve configuration file: `import_path: serve.app:app` and the settings under `args:` (docs/serving.md). API keys come
from the environment (MOXIN_API_KEY, MOXIN_API_KEYS_FILE) or the file that `api_keys_file` names, never from arguments, which
the dashboard shows.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from moxin import storage
from moxin.config import nearest
from moxin.infer.load import check_kind
from moxin.model import checkpoint
from serve.engine_deployment import EngineReplica, EngineSettings, Ingress
from serve.guard import MAX_BODY_BYTES, Rules, keys_from
from serve.router import PrefixRouter

ONE_LOOP = {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0", "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
"""Our code waits, or works in a thread of its own; with event loops of Ray beside it every message would cross threads."""
SPARE_CALLS = 64
"""Calls that a replica takes beyond its engine's limit, so that refusals and health checks come through at once."""
MAX_CONNECTIONS = 4000
"""Requests that one ingress holds, nearly all of them on their way to be refused."""
HEALTH_CHECK_PERIOD_S = 2.0
"""A dead engine is replaced after three failed checks."""


class ModelSettings(BaseModel):
    """One model; text is converted, for that is what `serve run` gives."""

    model_config = ConfigDict(extra="forbid")

    model: str
    """Release folder in Hugging Face format, local or s3://."""
    name: str = ""
    """What clients call the model; the folder's name where empty."""
    replicas: int | None = Field(None, ge=1)
    """Engines, each with the whole model; instead of the two below."""
    min_replicas: int = Field(1, ge=0)
    """0 lets the model go when nobody has asked for `idle_s`; the next request waits until it is loaded."""
    max_replicas: int = Field(1, ge=1)
    idle_s: float = Field(600.0, gt=0)
    """Seconds with less work than the engines could do after which one goes."""
    gpus: int = Field(default_factory=lambda: int(torch.cuda.is_available()), ge=0, le=1)
    """GPUs of one engine: 1 or, to compute on the CPU, 0. Say 1 where this machine has none but the cluster's workers do."""
    cpus: int = Field(1, ge=1)
    """Cores, and so threads, of one engine: those that it computes with where `gpus` is 0."""
    weights: str | None = None
    """float32, bfloat16, float16, int8, int4; as stored where not given."""
    max_batch: int = Field(8, ge=1)
    """Answers that one engine works on at once."""
    max_waiting: int = Field(32, ge=0)
    """Answers that wait for one engine; those beyond are answered with 429."""
    max_len: int | None = Field(None, ge=2)
    """Most tokens of prompt and answer together; the model's own limit where not given."""
    cache_tokens: int | None = Field(None, ge=1)
    cache_dtype: str | None = None
    speculate: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _bounds_fit(self) -> "ModelSettings":
        if self.replicas is not None and self.model_fields_set & {"min_replicas", "max_replicas", "idle_s"}:
            raise ValueError("replicas is a fixed number; give it, or min_replicas, max_replicas and idle_s")
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        return self

    @property
    def limit(self) -> int:
        return self.max_batch + self.max_waiting


class ServiceSettings(BaseModel):
    """What all models have in common."""

    model_config = ConfigDict(extra="forbid")

    api_keys_file: str = ""
    """One key a line, readable by its owner only."""
    allowed_hosts: list[str] = Field(default_factory=list)
    """Names under which a service without keys may be reached, beside localhost and addresses."""
    max_body_bytes: int = Field(MAX_BODY_BYTES, ge=1024)
    stream_interval_ms: float = Field(20.0, ge=0, le=5000)
    """Least time between two events of a stream after the first: tokens that come faster travel together."""
    ingresses: int = Field(1, ge=1)
    """Processes that speak HTTP."""
    drain_s: float = Field(600.0, ge=1)
    """How long a replica that is replaced may go on with what it has begun."""


def parse(args: Mapping[str, Any], look: bool = True) -> tuple[ServiceSettings, list[ModelSettings]]:
    """The settings of a service: those of one model beside the common ones, or a list of them under `models`. Without
    `look` the folders are not looked at.

    Raises `ValueError` for a setting that is unknown or wrong, a name given twice, and a folder that holds no model.
    """
    common = {name: value for name, value in args.items() if name in ServiceSettings.model_fields}
    rest = {name: value for name, value in args.items() if name not in common}
    many = rest.pop("models", None)
    if many is None:
        many = [rest]
    elif rest:
        raise ValueError(
            f"unknown setting {min(rest)!r} beside models; {nearest(min(rest), ServiceSettings.model_fields)}"
        )
    if not isinstance(many, list) or not many or not all(isinstance(one, Mapping) for one in many):
        raise ValueError("models: a list with at least one model, each with its settings")
    service = _validated(ServiceSettings, common)
    models = [_validated(ModelSettings, one) for one in many]
    named: list[ModelSettings] = []
    for model in models:
        url = storage.absolute(model.model)
        name = model.name or url.rsplit("/", 1)[-1]
        if any(name == other.name for other in named):
            raise ValueError(f"the model name {name!r} is given twice; give one of them another name")
        named.append(model.model_copy(update={"model": url, "name": name}))
        if look:
            _check_folder(named[-1])
    return service, named


def _validated(kind: type[Any], given: Mapping[str, Any]) -> Any:
    if unknown := sorted(set(given) - set(kind.model_fields)):
        raise ValueError(f"unknown setting {unknown[0]!r}; {nearest(unknown[0], kind.model_fields)}")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{first['loc'][0]} = {first['input']!r}: " if first["loc"] else ""
        raise ValueError(f"{where}{first['msg'].removeprefix('Value error, ')}") from error


def _check_folder(model: ModelSettings) -> None:
    """Everything that is wrong with a folder shows before a process is started for it; weights are not read."""
    for needed in ("config.json", "tokenizer.json"):
        if not storage.exists(storage.join(model.model, needed)):
            raise ValueError(
                f"{model.model} has no {needed}; give a release folder, as jobs/release.py makes"
            )
    config = checkpoint.load_config(model.model)
    check_kind(config, model.weights)
    with checkpoint.open_checked(model.model, config):
        pass


def app(args: dict[str, Any]) -> Application:
    """The application that `args` describe. Raises `ValueError` as `parse` does, and for keys that cannot be read."""
    service, models = parse(args)
    keys_from(os.environ, service.api_keys_file)
    engines, handles, idle = {}, {}, {}
    for number, model in enumerate(models):
        settings = EngineSettings(
            model.model,
            model.name,
            "cuda" if model.gpus else "cpu",
            model.limit,
            service.stream_interval_ms / 1000,
            model.weights,
            model.max_batch,
            model.max_len,
            model.cache_tokens,
            model.cache_dtype,
            model.speculate,
        )
        name = "engine" if len(models) == 1 else f"engine-{number}"
        engines[model.name], idle[model.name] = settings, model.replicas is None and model.min_replicas == 0
        handles[model.name] = _engine(name, model, service).bind(settings)
    ingress = serve.deployment(
        name="ingress",
        num_replicas=service.ingresses,
        max_ongoing_requests=MAX_CONNECTIONS,
        graceful_shutdown_timeout_s=service.drain_s,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": ONE_LOOP}},  # it waits, mostly
    )(Ingress)
    keys = keys_from({"MOXIN_API_KEY": os.environ.get("MOXIN_API_KEY", "")})
    rules = Rules(allowed_hosts=tuple(service.allowed_hosts), max_body_bytes=service.max_body_bytes)
    return ingress.bind(engines, handles, idle, service.api_keys_file, keys, rules)


def _engine(name: str, model: ModelSettings, service: ServiceSettings) -> Any:
    scaling: dict[str, Any] = {"num_replicas": model.replicas or 1}
    if model.replicas is None and (model.min_replicas, model.max_replicas) != (1, 1):
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=model.min_replicas,
                max_replicas=model.max_replicas,
                target_ongoing_requests=model.max_batch,
                upscale_delay_s=2.0,
                downscale_delay_s=model.idle_s,
                downscale_to_zero_delay_s=model.idle_s,
                metrics_interval_s=1.0,
                look_back_period_s=5.0,
                policy=AutoscalingPolicy(policy_function="serve.autoscale:engines"),
            )
        }
    threads = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), str(model.cpus))
    return serve.deployment(
        name=name,
        max_ongoing_requests=model.limit + SPARE_CALLS,
        max_queued_requests=max(SPARE_CALLS, model.max_waiting),
        graceful_shutdown_timeout_s=service.drain_s,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        request_router_config=RequestRouterConfig(request_router_class=PrefixRouter),  # type: ignore[arg-type]
        ray_actor_options={
            "num_cpus": model.cpus,
            "num_gpus": model.gpus,
            "runtime_env": {"env_vars": {**threads, **ONE_LOOP}},
        },
        **scaling,
    )(EngineReplica)
