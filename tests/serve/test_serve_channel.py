"""The stream that an engine's process and an ingress share: nothing lost between the first piece and the channel's opening,
and no channel left open behind the last answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from serve import channel
from serve.channel import Outboxes, Parcel
from serve.engine_loop import Piece
from serve.errors import EngineError


def piece(text: str) -> list[Piece]:
    return [Piece(0, text, (1,))]


def run(test: Callable[[], Awaitable[Any]], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(channel, "IDLE_S", 0.1)
    monkeypatch.setattr(channel, "UNCLAIMED_S", 0.2)

    async def bounded() -> Any:
        return await asyncio.wait_for(test(), 20)

    return asyncio.run(bounded())


def test_an_answer_that_ends_before_its_channel_opens_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> list[Parcel]:
        outboxes = Outboxes()
        with outboxes.sending("a") as outbox:
            outbox.put(7, piece("x"))
            outbox.put(7, piece("y"))
        return [parcel async for parcels in outboxes.channel("a", outbox.number) for parcel in parcels]

    assert run(test, monkeypatch) == [(7, piece("x")), (7, piece("y"))]


def test_a_channel_carries_all_answers_and_ends_when_the_last_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> tuple[list[list[Parcel]], int, int]:
        outboxes, came, both = Outboxes(), list[list[Parcel]](), asyncio.Event()

        async def answer(key: int) -> None:
            with outboxes.sending("a") as outbox:
                for n in range(3):
                    outbox.put(key, piece(str(n)))
                    await asyncio.sleep(0.15)  # longer than a channel without answers would last
                await both.wait()

        with outboxes.sending("a") as outbox:
            reading = asyncio.ensure_future(_gather(outboxes, outbox.number, came))
            answers = [asyncio.ensure_future(answer(key)) for key in (1, 2)]
            await asyncio.sleep(0.6)
            open_then = outboxes.n_taken
            both.set()
            await asyncio.gather(*answers)
        await reading
        return came, open_then, outboxes.n_taken

    came, open_then, open_after = run(test, monkeypatch)
    assert [sorted(key for key, _ in parcels) for parcels in came] == [[1, 2]] * 3  # a message for each step
    assert (open_then, open_after) == (1, 0)


async def _gather(outboxes: Outboxes, number: int, came: list[list[Parcel]]) -> None:
    async for parcels in outboxes.channel("a", number):
        came.append(parcels)


def test_ingresses_have_outboxes_of_their_own_and_old_ones_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        outboxes = Outboxes()
        with outboxes.sending("a") as first, outboxes.sending("b") as other:
            assert first.number != other.number
            first.put(1, piece("mine"))
            other.put(1, piece("theirs"))
            assert await anext(outboxes.channel("b", other.number)) == [(1, piece("theirs"))]
        await asyncio.sleep(0.3)  # nobody has claimed the first
        with outboxes.sending("a") as later:
            assert later.number != first.number
            with pytest.raises(EngineError, match="is gone"):
                await anext(outboxes.channel("a", first.number))
        with pytest.raises(EngineError, match="is gone"):
            await anext(outboxes.channel("nobody", 0))

    run(test, monkeypatch)
