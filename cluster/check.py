#!/usr/bin/env python
"""Checks a `ray up` file without an account or a network: Ray's own validation, the EC2 API's description, our rules.

cluster/check.py cluster/a100.yaml

Ray 2.60 accepts an instance type that does not exist, any key below `provider`, a GPU count that the machine does not have,
and fills commands that are left out with defaults that install a nightly build. Prints one line per problem; exits 1 if
there is one.
"""

import contextlib
import functools
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import jsonschema
import yaml
from botocore.model import ServiceModel
from ray.autoscaler._private.util import prepare_config, validate_config


@dataclass(frozen=True)
class Instance:
    vcpus: int
    gpus: int


# vCPUs and GPUs as the EC2 documentation lists them (instance type specifications, general purpose and accelerated).
INSTANCES = {
    "m6i.2xlarge": Instance(8, 0),
    "m6i.4xlarge": Instance(16, 0),
    "m6i.8xlarge": Instance(32, 0),
    "m6i.16xlarge": Instance(64, 0),
    "p4d.24xlarge": Instance(96, 8),
    "p4de.24xlarge": Instance(96, 8),
    "p5.48xlarge": Instance(192, 8),
    "p5en.48xlarge": Instance(192, 8),
}
PROVIDER_KEYS = {
    "type",
    "region",
    "availability_zone",
    "cache_stopped_nodes",
    "use_internal_ips",
    "use_external_head_ip",
    "security_group",
    "key_pair",
    "cloudwatch",
}
COMMANDS = ("setup_commands", "head_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
"""Left out, Ray fills these in with its own."""


def check(path: str | Path) -> list[str]:
    """What is wrong with a cluster file, one line each; empty when nothing is. Raises `OSError` if it cannot be read."""
    text = Path(path).read_text()
    try:
        config = yaml.safe_load(text)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            validate_config(
                prepare_config(yaml.safe_load(text))
            )  # its warnings are about Docker, not used here
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    except jsonschema.ValidationError as error:
        where = ".".join(str(part) for part in error.absolute_path)
        return [f"Ray: {where or 'top level'}: {error.message}"]
    except (ValueError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
        return [f"Ray: {type(error).__name__}: {error}"]
    problems = _provider(config["provider"]) + _commands(config) + _counts(config)
    for name, node_type in config.get("available_node_types", {}).items():
        is_head = name == config["head_node_type"]
        problems += [f"available_node_types.{name}.{problem}" for problem in _node_type(node_type, is_head)]
    return problems


def _provider(provider: dict[str, Any]) -> list[str]:
    problems = [
        f"provider.{key}: unknown key; known: {', '.join(sorted(PROVIDER_KEYS))}"
        for key in sorted(set(provider) - PROVIDER_KEYS)
    ]
    if provider["type"] != "aws":
        problems.append(f"provider.type = {provider['type']}: these rules are for aws")
    if "region" not in provider:
        problems.append("provider.region: missing; without it Ray takes us-west-2")
    return problems


def _commands(config: dict[str, Any]) -> list[str]:
    problems = [f"{key}: missing; Ray's own would be used" for key in COMMANDS if not config.get(key)]
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in config.get(key) or () if "ray start" in command]
        if not any("RAY_AUTH_MODE=token" in command for command in starts):
            problems.append(f"{key}: `ray start` without RAY_AUTH_MODE=token lets anybody submit jobs")
        if key.startswith("head") and not any("--dashboard-host=127.0.0.1" in command for command in starts):
            problems.append(f"{key}: `ray start` without --dashboard-host=127.0.0.1")
        if key.startswith("head") and not any("--autoscaling-config=" in command for command in starts):
            problems.append(
                f"{key}: `ray start` without --autoscaling-config=~/ray_bootstrap_config.yaml: no autoscaling"
            )
    if not any(remote.endswith("/.ray/auth_token") for remote in config.get("file_mounts") or ()):
        problems.append("file_mounts: no /home/USER/.ray/auth_token: the nodes would not know the token")
    return problems


def _counts(config: dict[str, Any]) -> list[str]:
    problems = []
    for key in ("max_workers", "idle_timeout_minutes", "available_node_types"):
        if key not in config:
            problems.append(f"{key}: missing; say it, so that the cost is known")
    limits = [node.get("max_workers", 0) for node in config.get("available_node_types", {}).values()]
    if config.get("max_workers", 0) > sum(limits):
        problems.append(
            f"max_workers = {config['max_workers']}: the node types allow {sum(limits)} together; lower the one or "
            "raise the others"
        )
    return problems


def _node_type(node_type: dict[str, Any], is_head: bool) -> list[str]:
    problems = []
    for key in ("min_workers", "max_workers"):
        if key not in node_type:
            problems.append(f"{key}: missing")
    low, high = node_type.get("min_workers", 0), node_type.get("max_workers", 0)
    if low > high:
        problems.append(f"min_workers = {low} is more than max_workers = {high}")
    problems += [f"node_config: {problem}" for problem in _node_config(node_type["node_config"])]
    name = node_type["node_config"].get("InstanceType")
    resources = node_type["resources"]
    if (instance := INSTANCES.get(name)) is None:
        return [
            *problems,
            f"node_config.InstanceType = {name}: not in cluster/check.py; add its vCPUs and GPUs",
        ]
    if resources.get("GPU") != instance.gpus:
        problems.append(f"resources.GPU = {resources.get('GPU')}: {name} has {instance.gpus}")
    # Fewer CPUs than there are is a way to keep tasks off a node: the head gives 0.
    if not 0 <= resources.get("CPU", -1) <= instance.vcpus:
        problems.append(f"resources.CPU = {resources.get('CPU')}: {name} has {instance.vcpus} vCPUs")
    if is_head and (instance.gpus or high):
        problems.append(
            f"the head is {name} with max_workers = {high}: it needs no GPU and no workers of its type"
        )
    return problems


@functools.cache
def _ec2() -> ServiceModel:
    return botocore.session.get_session().get_service_model("ec2")


def _node_config(node_config: dict[str, Any]) -> list[str]:
    """`node_config` against EC2's RunInstances, whose arguments it is, as botocore describes it."""
    model = _ec2()
    request = {key: value for key, value in node_config.items() if key != "SubnetIds"}  # Ray's own key
    report = botocore.validate.ParamValidator().validate(
        {**request, "MinCount": 1, "MaxCount": 1}, model.operation_model("RunInstances").input_shape
    )
    problems = report.generate_report().splitlines() if report.has_errors() else []
    if node_config.get("InstanceType") not in model.shape_for("InstanceType").enum:
        problems.append(f"InstanceType = {node_config.get('InstanceType')}: EC2 has no such type")
    if not str(node_config.get("ImageId", "")).startswith(("ami-", "resolve:ssm:")):
        problems.append(
            "ImageId: an ami-… or resolve:ssm:… is needed; Ray's default is Ubuntu 18.04 with CUDA 11.2"
        )
    metadata = node_config.get("MetadataOptions", {})
    if metadata.get("HttpTokens") != "required" or metadata.get("HttpPutResponseHopLimit") != 1:
        problems.append(
            "MetadataOptions: HttpTokens: required and HttpPutResponseHopLimit: 1 keep a request forged through the "
            "dashboard away from the node's credentials (CVE-2023-48023)"
        )
    return problems


def main(paths: list[str]) -> int:
    if not paths:
        print((__doc__ or "").split("\n\n")[1], file=sys.stderr)
        return 2
    problems = [f"{path}: {problem}" for path in paths for problem in check(path)]
    print(
        "\n".join(problems) or f"{len(paths)} cluster file{'s' if len(paths) > 1 else ''}: no problem found"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
