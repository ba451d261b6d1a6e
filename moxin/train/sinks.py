"""Where the rows of a training run go while it runs: TensorBoard, and a log of JSON lines.

A sink is called with every row of rank 0 and closed at the end. Metrics never end a run: a sink whose disk or store fails is
given up with a warning.
"""

import io
import json
import logging
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Protocol

from moxin import storage
from moxin.train.loop import Row

FLUSH_S = 2.0
"""What is written to a local folder can be seen after so long."""
UPLOAD_S = 60.0
"""Between two uploads to an object store, each of the newest file as a whole: the store cannot append."""
FILE_BYTES = 4 * 2**20
"""From here on a new file begins, so that an upload stays short; some 5,000 steps of TensorBoard."""
_log = logging.getLogger(__name__)


class Sink(Protocol):
    def __call__(self, row: Row) -> None: ...

    def close(self) -> None: ...


class Sinks:
    """Several sinks as one. One that raises `OSError` is given up; other exceptions are mistakes of ours and are raised."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = list(sinks)

    def __call__(self, row: Row) -> None:
        self._all(lambda sink: sink(row))

    def close(self) -> None:
        self._all(lambda sink: sink.close())

    def _all(self, call: Callable[[Sink], None]) -> None:
        for sink in list(self.sinks):
            try:
                call(sink)
            except OSError as error:
                _log.warning("%s is given up, training goes on: %s", type(sink).__name__, error)
                self.sinks.remove(sink)


class Files:
    """A folder to which one process appends, in files that begin with `head` and are named `prefix.START.PART` + `suffix`.

    Names sort in the order of writing, over all attempts at a run and whatever the clocks of their machines say. In an
    object store a file appears and grows every `UPLOAD_S`, written by a thread: training does not wait for it.
    """

    def __init__(self, url: str, prefix: str, suffix: str = "", head: bytes = b"") -> None:
        self.url, self.prefix, self.suffix, self.head = url, prefix, suffix, head
        pattern = re.compile(re.escape(prefix) + r"\.(\d{10})\.\d{4}" + re.escape(suffix))
        earlier = [int(match[1]) for name in storage.files_under(url) if (match := pattern.fullmatch(name))]
        self.start, self.part = max([int(time.time()), *(number + 1 for number in earlier)]), 0
        self.remote = not storage.is_local(url)
        self._temporary = tempfile.TemporaryDirectory(prefix="moxin-metrics-") if self.remote else None
        self.folder = Path(self._temporary.name) if self._temporary else storage.local_path(url)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._pool = ThreadPoolExecutor(1, "metrics")
        self._upload: Future[None] | None = None
        self._sent = self._flushed = time.monotonic()
        self._file = self._open()

    @property
    def name(self) -> str:
        return f"{self.prefix}.{self.start:010d}.{self.part:04d}{self.suffix}"

    def _open(self) -> IO[bytes]:
        file = open(self.folder / self.name, "ab")  # noqa: SIM115 (it stays open)
        file.write(self.head)
        return file

    def write(self, data: bytes) -> None:
        self._file.write(data)
        now = time.monotonic()
        if now - self._flushed >= FLUSH_S:
            self._flushed = now
            self._file.flush()
        if self._file.tell() >= FILE_BYTES:
            self._file.close()
            self._send(wait=True)
            self.part += 1
            self._file = self._open()
        elif now - self._sent >= UPLOAD_S:
            self._file.flush()
            self._send(wait=False)

    def _send(self, wait: bool) -> None:
        """Uploads the newest file. Without `wait`, one that is still under way, or has failed, is left to the next time."""
        if not self.remote:
            return
        self._sent = time.monotonic()
        if self._upload is not None and (wait or self._upload.done()):
            try:
                self._upload.result()
            except OSError as error:
                _log.warning("%s: not uploaded this time: %s", self.url, error)
            self._upload = None
        if self._upload is None:
            path, target = self.folder / self.name, storage.join(self.url, self.name)
            self._upload = self._pool.submit(lambda: storage.write_bytes(target, path.read_bytes()))

    def close(self) -> None:
        """Raises `OSError` where the last upload fails."""
        try:
            if not self._file.closed:
                self._file.close()
                self._send(wait=True)
            if self._upload is not None:
                self._upload.result()
        finally:
            self._pool.shutdown()
            if self._temporary:
                self._temporary.cleanup()


def numbers(row: Row) -> Iterator[tuple[str, float]]:
    """The row's numbers by name; those of a dictionary as `key/name`, yes and no as 1 and 0."""
    for key, value in row.items():
        if isinstance(value, dict):
            yield from ((f"{key}/{name}", float(inner)) for name, inner in value.items() if inner is not None)
        elif isinstance(value, (int, float)):
            yield key, float(value)


class JsonLines:
    """Every row of this attempt with its `time` (s since 1970), as it comes.

    So also what `metrics.jsonl` does not keep: rows after the last checkpoint, and of steps that are made again later.
    """

    def __init__(self, url: str) -> None:
        self.files = Files(url, "attempt", ".jsonl")

    def __call__(self, row: Row) -> None:
        line = json.dumps({**row, "time": round(time.time(), 3)}, ensure_ascii=False)
        self.files.write(line.encode() + b"\n")

    def close(self) -> None:
        self.files.close()


GROUPS = {
    **dict.fromkeys(("loss", "lr", "grad_norm", "skipped", "spike"), "train"),
    **dict.fromkeys(("seconds", "data_seconds", "checkpoint_seconds", "mfu", "hfu", "mfu_full"), "speed"),
    **dict.fromkeys(("dollars", "eta_seconds", "memory_bytes"), "resources"),
}
"""Headings under which TensorBoard shows a number; rates stand under `speed`, what is new under `train`."""


class TensorBoard:
    """Scalars for `tensorboard --logdir`, by step. `first_step` is the step of the first row that will come.

    An earlier attempt may have written steps from there on; a record of a new session makes TensorBoard forget those.
    """

    def __init__(self, url: str, first_step: int = 1) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._event = Event
        self.files = Files(url, "events.out.tfevents", head=_record(Event(file_version="brain.Event:2")))
        session = SessionLog(status=SessionLog.START)
        self.files.write(_record(Event(step=first_step, wall_time=time.time(), session_log=session)))

    def __call__(self, row: Row) -> None:
        event = self._event(step=row["step"], wall_time=time.time())
        for name, value in numbers(row):
            if name == "step" or math.isinf(value):  # TensorBoard's charts have no place for infinity
                continue
            group = GROUPS.get(name, "speed" if name.endswith("_per_second") else "train")
            event.summary.value.add(tag=name if "/" in name else f"{group}/{name}", simple_value=value)
        self.files.write(_record(event))

    def close(self) -> None:
        self.files.close()


def _record(event: Any) -> bytes:
    """The event framed as TensorFlow's record files are: its length, a checksum of that, the bytes, and their checksum."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    target = io.BytesIO()
    RecordWriter(target).write(event.SerializeToString())
    return target.getvalue()
