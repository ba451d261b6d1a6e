"""A pipeline in a process of its own, which a test starts, watches, kills and starts again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 900


class Walk:
    """One attempt at a run: `jobs/pipeline.py --recipe smoke`, or another job."""

    def __init__(self, run: Path, *options: str, job: str = "pipeline.py", log: Path | None = None) -> None:
        self.log = log or run.parent / f"{run.name}.log"
        self.begins = self.log.stat().st_size if self.log.exists() else 0
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        command = [sys.executable, str(ROOT / "jobs" / job), "--recipe", "smoke", "--run", str(run), *options]
        with open(self.log, "a") as output:
            output.write(f"\n$ {' '.join(command)}\n")
            output.flush()
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    def until(self, happened: Callable[[], bool]) -> None:
        """Waits for something to be seen in the run folder while the job runs."""
        deadline = time.monotonic() + PATIENCE_S
        while not happened():
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.tail()}"
            assert time.monotonic() < deadline, f"not seen in {PATIENCE_S} s:\n{self.tail()}"
            time.sleep(0.05)

    def wait(self) -> int:
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"not done in {PATIENCE_S} s:\n{self.tail()}") from None

    def kill(self) -> None:
        """`kill -9` of the driver; its Ray ends by itself, because its processes are bound to the driver's life."""
        self.process.kill()
        self.process.wait()

    def interrupt(self) -> int:
        """Ctrl-C in a terminal reaches every process of the foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.wait()

    def output(self) -> str:
        """What this attempt has printed so far."""
        return self.log.read_bytes()[self.begins :].decode()

    def tail(self) -> str:
        return "\n".join(self.output().splitlines()[-60:])


def finished(run: Path, stage: str) -> bool:
    return any(run.glob(f"{stage}-*/manifest.json"))


def begun(run: Path, stage: str) -> bool:
    return any(run.glob(f"{stage}-*"))
