"""The linter of Serve configuration files, and what Ray itself lets through."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serve.check import check
from serve.run import check_exposed, read_config

SHIPPED = Path(__file__).parents[2] / "serve" / "service.yaml"


def test_the_file_that_is_shipped_is_right() -> None:
    assert check(SHIPPED) == []


def changed(tmp_path: Path, path: str, value: Any) -> Path:
    """The shipped file with another value at a dotted path; a value of None takes the key away."""
    config = yaml.safe_load(SHIPPED.read_text())
    *way, last = path.split(".")
    place: Any = config
    for part in way:
        place = place[int(part)] if part.isdigit() else place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    file = tmp_path / "service.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


DEPLOYMENT = "applications.0.deployments.0"


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("proxy_locatoin", "HeadOnly", "proxy_locatoin: Ray has no such key; did you mean 'proxy_location'"),
        ("http_options.hosst", "127.0.0.1", "http_options.hosst"),
        (f"{DEPLOYMENT}.max_ongoing_request", 5, "did you mean 'max_ongoing_requests'"),
        (f"{DEPLOYMENT}.ray_actor_options", {"num_gpu": 1}, "ray_actor_options.num_gpu: "),
        (f"{DEPLOYMENT}.autoscaling_config", {"min_replica": 1}, "autoscaling_config.min_replica: "),
        (
            f"{DEPLOYMENT}.autoscaling_config",
            {"min_replicas": 4, "max_replicas": 2},
            "4 is above max_replicas 2",
        ),
        (
            f"{DEPLOYMENT}.autoscaling_config",
            {"max_replicas": 2, "initial_replicas": 7},
            "initial_replicas 7",
        ),
        (f"{DEPLOYMENT}.request_router_config", {"router": "x"}, "request_router_config.router"),
        (f"{DEPLOYMENT}.num_replicas", -1, "num_replicas"),
        (f"{DEPLOYMENT}.name", "ingres", "makes no deployment 'ingres'"),
        ("http_options.host", None, "listens on every address"),
        ("http_options.host", "0.0.0.0", "name a file of API keys"),
        ("applications.0.runtime_env", {"env_vars": {"MOXIN_API_KEY": "s"}}, "the dashboard shows"),
        ("applications.0.args.stream_intervall_ms", 3, "did you mean 'stream_interval_ms'"),
        ("applications.0.args.drain_s", "long", "drain_s = 'long'"),
        ("applications.0.args.models.0.max_bacth", 3, "did you mean 'max_batch'"),
        ("applications.0.args.models.1.min_replicas", 3, "min_replicas 3 is above max_replicas 1"),
        ("applications.0.args.models.1.name", "moxin-chat", "given twice"),
        ("applications.0.args.models.0.replicas", 2, "replicas is a fixed number"),
        ("applications.0.import_path", "serve", "import_path"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, path: str, value: Any, told: str) -> None:
    problems = check(changed(tmp_path, path, value))
    assert any(told in problem for problem in problems), problems


def test_ray_itself_says_nothing_of_a_misspelt_key(tmp_path: Path) -> None:
    """Why the linter is there; where this fails Ray has become strict."""
    file = changed(tmp_path, f"{DEPLOYMENT}.max_ongoing_request", 5)
    ServeDeploySchema.model_validate(yaml.safe_load(file.read_text()))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [", "not YAML"),
        ("- 1", "holds no mapping"),
        ("a: 1\na: 2", "stands twice"),
        ("{}", "http_options.host"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    assert any(told in problem for problem in check(file))


def test_the_job_reads_what_it_can_serve(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="deployments would have no effect here"):
        read_config(str(SHIPPED))
    args, host, port = read_config(str(changed(tmp_path, "applications.0.deployments", None)))
    assert (len(args["models"]), host, port) == (2, "127.0.0.1", 8000)


def test_nobody_else_is_let_in_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOXIN_API_KEY", raising=False)
    monkeypatch.delenv("MOXIN_API_KEYS_FILE", raising=False)
    check_exposed("127.0.0.1")
    with pytest.raises(ValueError, match="--without-keys"):
        check_exposed("0.0.0.0")
    check_exposed("0.0.0.0", without_keys=True)
    monkeypatch.setenv("MOXIN_API_KEY", "k")
    check_exposed("0.0.0.0")
