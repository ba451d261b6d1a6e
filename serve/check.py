"""Checks a Serve configuration file strictly: `python -m serve.check serve/service.yaml`. Starts nothing, reads no model.

Ray 2.60 takes a misspelt key below `deployments` or `autoscaling_config` without a word, and more `min_replicas`
than `max_replicas`; of a key that stands twice it takes the last; a file without `http_options.host` listens everywhere.
Prints one line per problem; exits 1 if there is one.
"""

import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.config import AutoscalingConfig, BackpressureConfig, RequestRouterConfig
from ray.serve.schema import ServeDeploySchema

from moxin.config import nearest
from serve.app import parse

LOOPBACK = ("127.0.0.1", "localhost", "::1")
OURS = "serve.app:app"
OPEN = {"runtime_env", "args", "user_config", "resources", "policy_kwargs", "request_router_kwargs"}
"""Keys below which anything may stand as far as Ray goes."""
ALSO: dict[str, type[BaseModel]] = {
    "autoscaling_config": AutoscalingConfig,
    "backpressure_config": BackpressureConfig,
    "request_router_config": RequestRouterConfig,
}
"""What Ray's schema calls a mapping and reads as this."""


def check(path: str | Path) -> list[str]:
    """What is wrong with a file, one line each; empty when nothing is. Raises `OSError` if it cannot be read."""
    try:
        config = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Strict)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return [f"not YAML: {' '.join(str(error).split())}"]
    if not isinstance(config, Mapping):
        return ["the file holds no mapping; it needs at least http_options and applications"]
    return [
        *_keys(config, ServeDeploySchema, ""),
        *_values(config),
        *_scaling(config),
        *_http(config),
        *_ours(config),
    ]


class _Strict(yaml.SafeLoader):
    """YAML in which a key stands once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(
                    f"the key {name!r} stands twice in the mapping at line {node.start_mark.line + 1}"
                )
        return super().construct_mapping(node, deep)


def _keys(given: Any, schema: type[BaseModel], where: str) -> Iterator[str]:
    """Keys that Ray does not know, at any depth."""
    if not isinstance(given, Mapping):
        return
    for key, value in given.items():
        at = f"{where}{key}"
        field = schema.model_fields.get(str(key))
        if field is None:
            yield f"{at}: Ray has no such key; {nearest(str(key), schema.model_fields)}"
        elif key not in OPEN and (inner := ALSO.get(str(key)) or _model_in(field.annotation)) is not None:
            for number, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
                yield from _keys(item, inner, f"{at}." if number is None else f"{at}.{number}.")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model in a type such as `Optional[List[Model]]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for of in typing.get_args(annotation) if (found := _model_in(of)) is not None), None)


def _values(config: Mapping[str, Any]) -> Iterator[str]:
    try:
        ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        for found in error.errors():
            yield f"{'.'.join(str(part) for part in found['loc'])}: {found['msg'].removeprefix('Value error, ')}"


def _scaling(config: Mapping[str, Any]) -> Iterator[str]:
    for at, deployment in _deployments(config):
        scaling = deployment.get("autoscaling_config")
        if not isinstance(scaling, Mapping):
            continue
        low, high = scaling.get("min_replicas", 1), scaling.get("max_replicas", 1)
        first = scaling.get("initial_replicas")
        if isinstance(low, int) and isinstance(high, int):
            if low > high:
                yield f"{at}.autoscaling_config: min_replicas {low} is above max_replicas {high}"
            elif isinstance(first, int) and not low <= first <= high:
                yield f"{at}.autoscaling_config: initial_replicas {first} is not between {low} and {high}"


def _http(config: Mapping[str, Any]) -> Iterator[str]:
    options = config.get("http_options")
    host = options.get("host") if isinstance(options, Mapping) else None
    if host is None:
        yield "http_options.host: left out, Serve listens on every address of the machine; write 127.0.0.1"
    elif host not in LOOPBACK:
        for at, application in _applications(config):
            if application.get("import_path") == OURS and not _args(application).get("api_keys_file"):
                yield f"{at}.args.api_keys_file: {host} can be reached from elsewhere; name a file of API keys"


def _ours(config: Mapping[str, Any]) -> Iterator[str]:
    for at, application in _applications(config):
        environment = application.get("runtime_env")
        variables = environment.get("env_vars") if isinstance(environment, Mapping) else None
        if isinstance(variables, Mapping) and "MOXIN_API_KEY" in variables:
            yield f"{at}.runtime_env.env_vars: the dashboard shows MOXIN_API_KEY to everyone; use args.api_keys_file"
        if application.get("import_path") != OURS:
            continue
        try:
            _, models = parse(_args(application), look=False)
        except ValueError as error:
            yield f"{at}.args: {error}"
            continue
        made = ["engine"] if len(models) == 1 else [f"engine-{number}" for number in range(len(models))]
        for where, deployment in _deployments(config):
            name = deployment.get("name")
            if where.startswith(at) and name not in (*made, "ingress"):
                yield f"{where}.name: {OURS} makes no deployment {name!r}; it makes {', '.join(made)} and ingress"


def _args(application: Mapping[str, Any]) -> Mapping[str, Any]:
    args = application.get("args")
    return args if isinstance(args, Mapping) else {}


def _applications(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield from _listed(config, "applications", "")


def _deployments(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for at, application in _applications(config):
        yield from _listed(application, "deployments", f"{at}.")


def _listed(given: Mapping[str, Any], key: str, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    items = given.get(key)
    for number, item in enumerate(items if isinstance(items, list) else []):
        if isinstance(item, Mapping):
            yield f"{where}{key}.{number}", item


if __name__ == "__main__":
    problems = [f"{path}: {line}" for path in sys.argv[1:] for line in check(path)]
    print(*problems, sep="\n", end="\n" if problems else "")
    sys.exit(1 if problems else 0)
