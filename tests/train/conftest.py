"""What the tests of the DeepSpeed engine share."""

import os
import socket
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module")
def one_worker() -> Iterator[None]:
    """Makes this process the only worker of a group, with one thread as a worker on CPU has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    before = {name: os.environ.get(name) for name in place}
    os.environ.update(place)
    yield
    import deepspeed

    deepspeed.comm.destroy_process_group()
    torch.set_num_threads(n_threads)
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
