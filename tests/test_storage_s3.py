"""Every function of `moxin.storage` against a live S3 server, also when connections break, and what a person is told."""

import hashlib
import os
import random

import pytest
from s3 import BUCKET, LiveS3

from moxin import storage
from moxin.s3 import REQUESTS, S3

pytestmark = pytest.mark.slow
PART_BYTES = 5 * 2**20  # the least that S3 allows
SMALL = random.Random(1).randbytes(300_000)
LARGE = random.Random(2).randbytes(2 * PART_BYTES + 12_345)  # three parts


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts are small, and nobody's open clients are used."""
    monkeypatch.setattr("moxin.s3.PART_BYTES", PART_BYTES)
    S3.clear_instance_cache()
    yield
    S3.clear_instance_cache()


def faulty(s3: LiveS3, kind: str, only: str = "", n: int = 1) -> None:
    s3.faults.reset()
    s3.faults.only = only
    getattr(s3.faults, kind)(n)


def uploads(url: str) -> list[str]:
    """Multipart uploads that are neither complete nor given up, below `url`."""
    fs, path = storage.filesystem(url)
    bucket, prefix = path.split("/", 1)
    listed = fs.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads", [])
    return [upload["Key"] for upload in listed if upload["Key"].startswith(prefix)]


def test_whole_files_of_every_kind(s3):
    url = storage.join(s3.url, "deep", "file")
    assert not storage.exists(url)
    storage.write_json(url, {"a": [1, "ü"]})
    assert storage.exists(url)
    assert storage.read_json(url) == {"a": [1, "ü"]}
    assert storage.exists(storage.join(s3.url, "deep")), "a folder with files exists"
    storage.write_jsonl(url, [{"a": 1}, {"b": 2}])
    assert storage.read_jsonl(url) == [{"a": 1}, {"b": 2}]
    storage.write_bytes(url, b"")
    assert storage.read_bytes(url) == b""
    assert storage.sha256(url) == hashlib.sha256(b"").hexdigest()
    with storage.open_atomic(url, "w") as handle:
        handle.write("zwölf\n")
    with storage.open_read(url, "r") as handle:
        assert handle.read() == "zwölf\n"
    storage.remove(url)
    storage.remove(url)
    assert not storage.exists(url)
    with pytest.raises(FileNotFoundError, match=f"{url}: no such file"):
        storage.read_bytes(url)


def test_a_folder_is_listed_with_its_sizes_in_one_request_and_travels_both_ways(s3, tmp_path):
    there, back = tmp_path / "there", tmp_path / "back"
    expected = {f"{n % 3}/file-{n:03d}": n for n in range(120)}
    for name, size in expected.items():
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_bytes(b"x" * size)
    storage.makedirs(s3.url)
    storage.upload(there, s3.url)
    s3.faults.requests.clear()
    assert storage.sizes_under(s3.url) == dict(sorted(expected.items()))
    assert len(s3.faults.requests) == 1
    assert storage.files_under(s3.url) == sorted(expected)
    assert storage.sizes_under(storage.download(s3.url, back).as_posix()) == dict(sorted(expected.items()))
    storage.remove(s3.url)
    assert storage.files_under(s3.url) == []
    assert storage.sizes_under(str(tmp_path / "nowhere")) == {}


def test_another_process_write_is_seen_at_once(s3):
    """Neither a listing nor a miss may be remembered."""
    url = storage.join(s3.url, "file")
    assert storage.files_under(s3.url) == []
    assert not storage.exists(url)
    elsewhere = S3(use_listings_cache=False, skip_instance_cache=True)
    for content in (b"first", b"the second"):
        elsewhere.pipe_file(url, content)
        assert storage.exists(url)
        assert storage.sizes_under(s3.url) == {"file": len(content)}
        assert storage.read_bytes(url) == content
    elsewhere.rm_file(url)
    assert not storage.exists(url)


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "multipart"])
@pytest.mark.parametrize(
    ("kind", "only", "n"),
    [
        ("refuse", "", 4),
        ("cut_uploads", "PUT", 2),
        ("lose_answers", "PUT", 2),
        ("lose_answers", "file?uploadId=", 1),
    ],
)
def test_writing_outlives_faults(s3, tmp_path, content, kind, only, n):
    url, local = storage.join(s3.url, "file"), tmp_path / "file"
    local.write_bytes(content)
    storage.write_bytes(url, b"old")
    for write in (lambda: storage.write_bytes(url, content), lambda: storage.put_file(local, url)):
        faulty(s3, kind, only, n)
        write()
        assert s3.faults.injected == (0 if "uploadId" in only and content is SMALL else n)
        s3.faults.reset()
        assert storage.sizes_under(s3.url) == {"file": len(content)}
        assert storage.read_bytes(url) == content
    assert uploads(s3.url) == []


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(("kind", "n"), [("refuse", 4), ("cut_downloads", 3), ("lose_answers", 2)])
def test_reading_outlives_faults(s3, tmp_path, content, kind, n):
    url, local = storage.join(s3.url, "file"), tmp_path / "file"
    storage.write_bytes(url, content)

    def through_handle() -> bytes:
        with storage.open_read(url) as handle:
            handle.seek(len(content) // 2)
            end = handle.read()
            handle.seek(0)
            return handle.read(len(content) - len(end)) + end

    def through_file() -> bytes:
        storage.get_file(url, local)
        return local.read_bytes()

    for read in (lambda: storage.read_bytes(url), through_handle, through_file):
        faulty(s3, kind, "GET", n)
        assert read() == content
        assert s3.faults.injected == n
    faulty(s3, kind, "GET", n)
    assert storage.sha256(url) == hashlib.sha256(content).hexdigest()
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("kind", ["refuse", "cut_downloads", "lose_answers"])
def test_listing_and_deleting_outlive_faults(s3, kind):
    names = [f"{n:03d}" for n in range(20)]
    for name in names:
        storage.write_text(storage.join(s3.url, name), name)
    faulty(s3, kind, n=3)
    assert storage.files_under(s3.url) == names
    faulty(s3, kind, n=3)
    assert storage.exists(storage.join(s3.url, names[0]))
    assert not storage.exists(storage.join(s3.url, "other"))
    faulty(s3, kind, n=3)
    storage.remove(s3.url)
    s3.faults.reset()
    assert storage.files_under(s3.url) == []


def test_a_slow_server_is_waited_for(s3):
    url = storage.join(s3.url, "file")
    s3.faults.bytes_per_s = 600_000
    storage.write_bytes(url, SMALL)
    assert storage.read_bytes(url) == SMALL
    assert storage.sha256(url) == hashlib.sha256(SMALL).hexdigest()


@pytest.mark.parametrize("mode", ["wb", "w"])
@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "multipart"])
def test_a_write_that_is_given_up_leaves_nothing(s3, content, mode):
    url = storage.join(s3.url, "file")
    with pytest.raises(RuntimeError, match="stop"), storage.open_atomic(url, mode) as handle:  # noqa: PT012
        handle.write(content if mode == "wb" else content.hex())
        raise RuntimeError("stop")
    del handle  # an unclosed file closes itself when it is collected
    assert storage.files_under(s3.url) == []
    assert uploads(s3.url) == []


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "multipart"])
def test_a_write_that_fails_for_good_leaves_the_old_file_and_says_what_was_tried(s3, tmp_path, content):
    url, local = storage.join(s3.url, "file"), tmp_path / "file"
    local.write_bytes(content)
    storage.write_bytes(url, b"old")
    for write in (lambda: storage.write_bytes(url, content), lambda: storage.put_file(local, url)):
        faulty(s3, "cut_uploads", "PUT", 99)
        with pytest.raises(OSError, match=rf"{url}: \w+ failed {REQUESTS} times in \d+ s .*AWS_ENDPOINT_URL"):
            write()
        s3.faults.reset()
        assert storage.read_bytes(url) == b"old"
        assert uploads(s3.url) == []


def test_a_read_that_fails_for_good_says_what_was_tried_and_leaves_nothing(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(S3, "retries", 3)
    url = storage.join(s3.url, "file")
    storage.write_bytes(url, SMALL)
    for read in (
        lambda: storage.read_bytes(url),
        lambda: storage.sha256(url),
        lambda: storage.get_file(url, tmp_path / "file"),
    ):
        faulty(s3, "cut_downloads", "GET", 99)
        with pytest.raises(OSError, match=f"{url}: its content broke off 3 times"):
            read()
    assert os.listdir(tmp_path) == []
    faulty(s3, "refuse", "GET", 99)
    with pytest.raises(OSError, match=rf"{url}: get_object failed {REQUESTS} times in \d+ s .*SlowDown"):
        storage.read_bytes(url)


def test_a_file_that_is_replaced_while_it_is_read_is_never_mixed(s3):
    url = storage.join(s3.url, "file")
    storage.write_bytes(url, LARGE)
    with storage.open_read(url) as handle:
        assert handle.read(1000) == LARGE[:1000]
        storage.write_bytes(url, LARGE[::-1])
        with pytest.raises(OSError, match="replaced"):
            handle.read()


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_keys_are_named(s3, monkeypatch, name):
    monkeypatch.setenv(name, "wrong")
    url = storage.join(s3.url, "file")
    for work in (storage.exists, storage.read_bytes, storage.makedirs, storage.remove, storage.files_under):
        with pytest.raises(ValueError, match=r"refuses .*AWS_ACCESS_KEY_ID") as caught:
            work(url)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=rf"{url}: http://127.* refuses put_object .*AWS_ACCESS_KEY_ID"):
        storage.write_text(url, "x")


def test_no_keys_at_all(s3, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ValueError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        storage.exists(s3.url)


def test_a_bucket_that_is_not_there_is_named_and_never_made(s3, tmp_path):
    url = "s3://moxin-tset/run/file"
    (tmp_path / "file").write_text("x")
    for work in (
        *(
            storage.exists,
            storage.read_bytes,
            storage.makedirs,
            storage.files_under,
            storage.remove,
            storage.sha256,
        ),
        lambda url: storage.write_text(url, "x"),
        lambda url: storage.upload(tmp_path, url),
    ):
        with pytest.raises(ValueError, match="there is no bucket 'moxin-tset' at http://127") as caught:
            work(url)
        assert "\n" not in str(caught.value)
    assert S3.here().ls("") == [BUCKET]


def test_an_endpoint_that_does_not_answer(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for work in (
        storage.exists,
        storage.read_bytes,
        storage.makedirs,
        lambda url: storage.write_text(url, "x"),
    ):
        with pytest.raises(
            OSError, match=rf"failed {REQUESTS} times in .*http://127.0.0.1:9.*AWS_ENDPOINT_URL"
        ):
            work(storage.join(s3.url, "file"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    S3.clear_instance_cache()
    with pytest.raises(ValueError, match="AWS_ENDPOINT_URL"):
        storage.exists(s3.url)


def test_workers_of_ray_reach_the_same_store(ray_session, s3):
    import ray

    url = storage.join(s3.url, "file")
    storage.write_bytes(url, SMALL)

    @ray.remote
    def copy(url: str) -> str:
        storage.write_bytes(url + "-copy", storage.read_bytes(url))
        return storage.sha256(url + "-copy")

    assert ray.get(copy.remote(url)) == hashlib.sha256(SMALL).hexdigest()
    assert storage.sizes_under(s3.url) == {"file": len(SMALL), "file-copy": len(SMALL)}
