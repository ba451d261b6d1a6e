"""`cluster/a100.yaml` against Ray's own validation, and the linter against files that Ray accepts and EC2 would not."""

import copy
import importlib.util
import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "cluster" / "a100.yaml"


def load_check() -> Any:
    spec = importlib.util.spec_from_file_location("cluster_check", ROOT / "cluster" / "check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check = load_check()


@pytest.fixture
def config() -> dict[str, Any]:
    return copy.deepcopy(yaml.safe_load(FILE.read_text()))


def problems(config: dict[str, Any], folder: Path) -> str:
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    return "\n".join(check.check(path))


def test_ray_accepts_the_file_and_fills_in_nothing_that_matters(config: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    nodes = prepared["available_node_types"]
    assert all(node["min_workers"] == 0 for node in nodes.values())
    assert nodes["a100"]["node_config"]["InstanceType"] == "p4d.24xlarge"
    assert nodes["a100-spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in nodes["a100"]["node_config"]
    assert nodes[prepared["head_node_type"]]["resources"]["GPU"] == 0
    assert prepared["head_setup_commands"] == config["setup_commands"] + config["head_setup_commands"]
    assert not any("nightly" in command or "ray-wheels" in command for command in prepared["setup_commands"])


def test_the_linter_accepts_the_file() -> None:
    assert check.check(FILE) == []
    assert check.main([str(FILE)]) == 0


def node(config: dict[str, Any]) -> dict[str, Any]:
    return config["available_node_types"]["a100"]["node_config"]


# Each of these passes Ray 2.60's own validation.
ACCEPTED_BY_RAY = {
    "an instance type that does not exist": (
        lambda c: node(c).update(InstanceType="p99.mega"),
        "EC2 has no such type",
    ),
    "a misspelt EC2 argument": (
        lambda c: node(c).update(ImagId="ami-1"),
        'Unknown parameter in input: "ImagId"',
    ),
    "a wrong type deep in an EC2 argument": (
        lambda c: node(c)["BlockDeviceMappings"][0]["Ebs"].update(VolumeSize="big"),
        "BlockDeviceMappings[0].Ebs.VolumeSize",
    ),
    "a misspelt provider key": (
        lambda c: c["provider"].update(regoin="us-east-1"),
        "provider.regoin: unknown key",
    ),
    "more workers than the types allow": (lambda c: c.update(max_workers=99), "max_workers = 99"),
    "a GPU count that the machine has not": (
        lambda c: c["available_node_types"]["a100"]["resources"].update(GPU=4),
        "resources.GPU = 4: p4d.24xlarge has 8",
    ),
    "more CPUs than the machine has": (
        lambda c: c["available_node_types"]["cpu"]["resources"].update(CPU=65),
        "resources.CPU = 65: m6i.16xlarge has 64 vCPUs",
    ),
    "no limit": (lambda c: c["available_node_types"]["a100"].pop("max_workers"), "a100.max_workers: missing"),
    "min above max": (
        lambda c: c["available_node_types"]["cpu"].update(min_workers=9),
        "min_workers = 9 is more than max_workers = 8",
    ),
    "no set-up of our own": (lambda c: c.pop("setup_commands"), "setup_commands: missing"),
    "an open job server": (
        lambda c: c["head_start_ray_commands"].__setitem__(
            1, c["head_start_ray_commands"][1].replace("RAY_AUTH_MODE=token ", "")
        ),
        "lets anybody submit jobs",
    ),
    "a dashboard for the whole network": (
        lambda c: c["head_start_ray_commands"].__setitem__(
            1, c["head_start_ray_commands"][1].replace("127.0.0.1", "0.0.0.0")
        ),
        "without --dashboard-host=127.0.0.1",
    ),
    "no token on the nodes": (
        lambda c: c["file_mounts"].pop("/home/ubuntu/.ray/auth_token"),
        "the nodes would not know the token",
    ),
    "old instance metadata": (lambda c: node(c).pop("MetadataOptions"), "CVE-2023-48023"),
    "Ray's default image": (lambda c: node(c).pop("ImageId"), "Ubuntu 18.04"),
    "a head with GPUs": (
        lambda c: c["available_node_types"]["head"].update(
            resources={"CPU": 0, "GPU": 8}, node_config=copy.deepcopy(node(c))
        ),
        "it needs no GPU",
    ),
}


@pytest.mark.parametrize("case", ACCEPTED_BY_RAY)
def test_the_linter_finds_what_ray_lets_through(case: str, config: dict[str, Any], tmp_path: Path) -> None:
    break_it, expected = ACCEPTED_BY_RAY[case]
    break_it(config)
    validate_config(prepare_config(copy.deepcopy(config)))
    assert expected in problems(config, tmp_path)


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda c: c.update(max_wokers=1), "'max_wokers' was unexpected"),
        (lambda c: c["available_node_types"]["a100"].update(min_workrs=1), "'min_workrs' was unexpected"),
        (lambda c: c.update(head_node_type="nobody"), "head_node_type"),
        (lambda c: c["available_node_types"]["a100"].update(min_workers=13), "max_workers"),
    ],
)
def test_what_ray_refuses_is_one_line_not_a_traceback(
    break_it: Any, expected: str, config: dict[str, Any], tmp_path: Path
) -> None:
    break_it(config)
    assert expected in problems(config, tmp_path)


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("cluster_name: [")
    assert check.main([str(path)]) == 1
    assert f"{path}: not YAML" in capsys.readouterr().out


def test_nodes_install_what_this_machine_installs(config: dict[str, Any]) -> None:
    torch = re.findall(r"torch==[\d.]+", (ROOT / "Makefile").read_text())
    assert torch
    assert any(torch[0] in command for command in config["setup_commands"])
    for remote, local in config["file_mounts"].items():
        assert local.startswith("~") or (ROOT / local).is_file(), (
            f"{remote} mounts {local}, which is not there"
        )


def test_policies_are_json_and_name_the_profiles_of_the_file(config: dict[str, Any]) -> None:
    policies = {path.stem: json.loads(path.read_text()) for path in (ROOT / "cluster" / "iam").glob("*.json")}
    assert set(policies) == {"assume", "head", "node"}
    actions = {action for part in policies["head"]["Statement"] for action in part["Action"]}
    assert {"ec2:RunInstances", "ec2:TerminateInstances", "ssm:GetParameters"} <= actions
    passed = next(
        part["Resource"] for part in policies["head"]["Statement"] if part["Action"] == "iam:PassRole"
    )
    profiles = {
        name: node["node_config"]["IamInstanceProfile"]["Name"]
        for name, node in config["available_node_types"].items()
    }
    assert profiles["head"] == "moxin-head"
    assert all(passed.endswith(f"/{profile}") for name, profile in profiles.items() if name != "head")
    assert config["cluster_name"] in json.dumps(policies["head"])


def test_the_linter_is_executable() -> None:
    assert (ROOT / "cluster" / "check.py").stat().st_mode & stat.S_IXUSR
