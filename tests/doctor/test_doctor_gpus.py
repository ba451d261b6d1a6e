"""GPUs as nvidia-smi tells of them: its CSV, what older drivers do not know, what is wrong with a card."""

import os
import stat
import sys

import pytest

from moxin.doctor import gpus
from moxin.doctor.need import Need

HEADER = (
    "name, driver_version, memory.total [MiB], memory.used [MiB], mig.mode.current, "
    "ecc.errors.uncorrected.volatile.total, retired_pages.pending, remapped_rows.pending, remapped_rows.failure, "
    "clocks_event_reasons.active\n"
)
H100 = "NVIDIA H100 80GB HBM3, 550.54.15, 81559, 4, Disabled, 0, [N/A], No, No, 0x0000000000000001\n"
A100 = "NVIDIA A100-SXM4-40GB, 535.183.01, 40960, 3, Disabled, 0, No, No, No, 0x0000000000000004\n"
GEFORCE = (
    "NVIDIA GeForce RTX 3090, 550.54.15, 24576, 1, [N/A], [N/A], [N/A], [N/A], [N/A], 0x0000000000000001\n"
)


def parsed(*rows):
    return gpus.parse(HEADER + "".join(rows), list(gpus.FIELDS))


def judged(nodes, need=None, **told):
    facts = {
        node: {"gpus": found, "trouble": "", "ray_gpus": len(found), **told} for node, found in nodes.items()
    }
    return gpus.judge(facts, need or Need())


def test_the_csv_is_read_by_column_and_what_a_card_does_not_have_is_none():
    a100, geforce = parsed(A100, GEFORCE)
    assert a100["name"] == "NVIDIA A100-SXM4-40GB"
    assert (a100["memory_mib"], a100["uncorrected"], a100["throttle"]) == (40960, 0, 4)
    assert geforce["uncorrected"] is geforce["mig"] is geforce["pending_pages"] is None
    assert gpus.parse(HEADER, list(gpus.FIELDS)) == []
    with pytest.raises(ValueError, match="10 columns were asked for, 2 came"):
        parsed("a, b\n")


def test_healthy_cards_are_one_line():
    [found] = judged(
        {node: parsed(*[H100] * 8) for node in "ab"}, Need(16, use_gpu=True, accelerator="H100-80GB")
    )
    assert found.level == "ok"
    assert found.result == "16 x NVIDIA H100 80GB HBM3, driver 550.54.15"


def test_no_gpu_is_fine_unless_the_run_wants_some():
    [found] = judged({"a": []})
    assert found.level == "ok"
    [found] = judged({"a": []}, Need(8, use_gpu=True))
    assert (found.level, found.result) == ("warn", "0 GPUs now, 8 workers asked for")


@pytest.mark.parametrize(
    ("row", "level", "words"),
    [
        (H100.replace("Disabled, 0", "Disabled, 3"), "refuse", "uncorrected memory errors: b GPU 1 (3)"),
        (H100.replace("No, No", "Yes, No"), "warn", "bad memory waits to be taken out of use: b GPU 1"),
        (H100.replace("No, No", "No, Yes"), "refuse", "could not be remapped"),
        (
            H100.replace("81559, 4", "81559, [GPU requires reset]"),
            "refuse",
            "not usable: b GPU 1 (GPU requires reset)",
        ),
        (H100.replace("0001\n", "0048\n"), "warn", "b GPU 1 (hardware slowdown, too hot (hardware))"),
        (H100.replace("0001\n", "0080\n"), "warn", "power brake"),
        (H100.replace("81559, 4", "81559, 70000"), "warn", "memory is in use: b GPU 1 (70,000 MiB)"),
        (H100.replace("Disabled", "Enabled"), "warn", "MIG is on"),
        (H100.replace("550.54.15", "550.90.07"), "warn", "driver: 550.54.15 on a, 550.54.15, 550.90.07 on b"),
        (
            A100.replace("535.183.01", "550.54.15"),
            "warn",
            "kind: NVIDIA A100-SXM4-40GB, NVIDIA H100 80GB HBM3 on b",
        ),
    ],
)
def test_what_is_wrong_with_one_card_is_told_with_its_place(row, level, words):
    [found] = judged({"a": parsed(H100, H100), "b": parsed(H100, row)})
    assert found.level == level
    assert words in found.result
    assert found.fix


@pytest.mark.parametrize("bits", ["0000", "0001", "0002", "0004", "0010", "0100"])
def test_idle_and_capped_cards_are_usual(bits):
    [found] = judged({"a": parsed(H100.replace("0001\n", f"{bits}\n"))})
    assert found.level == "ok"


def test_ray_and_the_driver_must_agree_on_their_number():
    findings = judged({"a": parsed(H100, H100)}, ray_gpus=1)
    assert "2 GPUs, but Ray was told of 1" in findings[0].result


def test_another_card_than_the_recipe_wants_is_refused():
    [found] = judged({"a": parsed(A100)}, Need(1, use_gpu=True, accelerator="H100-80GB"))
    assert found.level == "refuse"
    assert "scaling.accelerator = H100-80GB" in found.result


OLD_DRIVER = f"""#!{sys.executable}
# Driver 470: it names one field that it does not know, and prints nothing else.
import sys
known = {{"name": "Tesla V100-SXM2-32GB", "driver_version": "470.103.01", "memory.total": "32510", "memory.used": "0",
         "mig.mode.current": "[N/A]", "ecc.errors.uncorrected.volatile.total": "0", "retired_pages.pending": "No",
         "clocks_throttle_reasons.active": "0x0000000000000040"}}
asked = sys.argv[1].partition("=")[2].split(",")
for field in asked:
    if field not in known:
        print(f'Field "{{field}}" is not a valid field to query.')
        sys.exit(2)
print(", ".join(asked))
print(", ".join(known[field] for field in asked))
"""


@pytest.fixture
def smi(tmp_path, monkeypatch):
    def install(script):
        program = tmp_path / "nvidia-smi"
        program.write_text(script)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


def test_a_driver_that_does_not_know_a_field_is_asked_without_it(smi):
    smi(OLD_DRIVER)
    told = gpus.collect()
    assert told["trouble"] == ""
    [card] = told["gpus"]
    assert (card["name"], card["uncorrected"], card["throttle"]) == ("Tesla V100-SXM2-32GB", 0, 0x40)
    assert card["pending_rows"] is card["failed_rows"] is None


def test_a_driver_that_fails_or_hangs_is_told(smi, monkeypatch):
    smi(
        "#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'\nexit 9\n"
    )
    told = gpus.collect()
    assert "ended with 9: NVIDIA-SMI has failed" in told["trouble"]
    [found] = gpus.judge({"a": {**told, "ray_gpus": 0}}, Need(1, use_gpu=True))[:1]
    assert found.level == "refuse"
    monkeypatch.setattr(gpus, "QUERY_S", 0.2)
    smi("#!/bin/sh\nexec sleep 30\n")
    assert "no answer" in gpus.collect()["trouble"]
    monkeypatch.setenv("PATH", "")
    assert gpus.collect() == {"gpus": [], "trouble": ""}
