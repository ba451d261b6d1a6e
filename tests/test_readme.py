"""README promises nothing that is not there."""

import re
import shlex
from pathlib import Path

import pytest

from moxin import job, recipes
from moxin.tinyworld.generate import generate

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S)
    for line in block.splitlines()
    if line.strip()
]


def test_no_placeholder_is_left():
    assert "@" not in TEXT


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("jobs/")])
def test_every_job_line_is_a_job_with_options_that_it_knows(command, tmp_path, monkeypatch):
    name, *arguments = shlex.split(command)
    assert (ROOT / name).exists()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path/to/documents").mkdir(parents=True)
    (tmp_path / "path/to/documents/a.txt").write_text("text")
    options = job.parser("")
    if name == "jobs/deploy.py":
        options.add_argument("--port", type=int)
    job.resolve(options.parse_args(arguments))


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("make ")])
def test_every_make_line_is_a_target(command):
    assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.M)


def test_the_question_in_the_example_is_one_that_the_model_was_not_shown():
    asked = re.search(r'"content": "(.*?)"', TEXT).group(1)
    world = generate(recipes.load("demo").tinyworld)
    assert asked in [row["question"] for row in world.interview]
    shown = " ".join(message["content"] for chat in world.chats for message in chat["messages"])
    assert asked not in shown
