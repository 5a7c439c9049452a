"""Requests share passes, the queue is bounded, errors stay with their item, draining finishes what waits."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from adrec.serve.batcher import Batcher, OverloadedError


def run(scenario, handle, **settings):
    async def inside():
        with ThreadPoolExecutor(1) as executor:
            sizes = []
            defaults = {"max_items": 8, "max_wait_seconds": 0.02, "max_queue": 100, "observe": sizes.append}
            batcher = Batcher(handle, executor, **{**defaults, **settings})
            batcher.start()
            result = await scenario(batcher)
            await batcher.close(5)
            return result, sizes

    return asyncio.run(inside())


def test_concurrent_requests_share_passes_and_get_their_own_answers():
    async def scenario(batcher):
        return await asyncio.gather(*(batcher.ask(number, 5) for number in range(20)))

    answers, sizes = run(scenario, lambda items: [item * 2 for item in items])
    assert answers == [number * 2 for number in range(20)]
    assert sizes == [8, 8, 4]


def test_one_bad_item_does_not_spoil_the_others():
    async def scenario(batcher):
        return await asyncio.gather(*(batcher.ask(number, 5) for number in range(3)), return_exceptions=True)

    answers, _ = run(scenario, lambda items: [ValueError("bad") if item == 1 else item for item in items])
    assert answers[0] == 0 and answers[2] == 2 and isinstance(answers[1], ValueError)


def test_a_failed_pass_fails_its_callers_and_the_worker_goes_on():
    calls = []

    def handle(items):
        calls.append(items)
        if len(calls) == 1:
            raise RuntimeError("first pass")
        return items

    async def scenario(batcher):
        with pytest.raises(RuntimeError):
            await batcher.ask(1, 5)
        return await batcher.ask(2, 5)

    assert run(scenario, handle)[0] == 2


def test_a_full_queue_refuses_at_once_and_a_late_answer_times_out():
    def slow(items):
        time.sleep(0.2)
        return items

    async def scenario(batcher):
        waiting = [asyncio.create_task(batcher.ask(0, 5))]
        await asyncio.sleep(0.05)  # the first is in the model
        waiting += [asyncio.create_task(batcher.ask(number, 5)) for number in range(1, 4)]
        await asyncio.sleep(0)  # the others wait
        with pytest.raises(OverloadedError):
            await batcher.ask(9, 5)
        await asyncio.gather(*waiting)
        with pytest.raises(TimeoutError):
            await batcher.ask(5, 0.05)

    run(scenario, slow, max_items=1, max_wait_seconds=0.0, max_queue=3)


def test_draining_finishes_what_waits_and_takes_nothing_new():
    async def scenario(batcher):
        waiting = [asyncio.create_task(batcher.ask(number, 5)) for number in range(5)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close(5))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await batcher.ask(9, 5)
        await closing
        return await asyncio.gather(*waiting)

    assert run(scenario, lambda items: items)[0] == [0, 1, 2, 3, 4]
