"""Load a running server and print requests a second, latencies and batch sizes.

    adrec serve --config configs/sample/serve.yaml &
    python benchmarks/serve_load.py --url http://127.0.0.1:8080 --clients 64 --seconds 20 [--rate 50] [--path rank]

With `--rate` requests come at that rate whatever the answers take (open loop); else each client asks again at once.
For one-by-one figures start the server with `--set batching.max_items=1`.
"""

import argparse
import asyncio
import random
import re
import time

import httpx
import numpy as np


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--path", choices=["rank", "score"], default="rank")
    parser.add_argument("--top-n", type=int, default=10)
    asyncio.run(load(parser.parse_args()))


async def load(options: argparse.Namespace) -> None:
    """All clients for the given time."""
    limits = httpx.Limits(max_connections=options.clients, max_keepalive_connections=options.clients)
    async with httpx.AsyncClient(base_url=options.url, limits=limits, timeout=30) as client:
        users = (await client.get("/v1/about")).json()["users"]
        first = await client.post("/v1/rank", json={"requests": [{"user_id": users[0], "top_n": 10}]})
        ads = [ad["ad_id"] for ad in first.json()["lists"][0]["ads"]]
        before = sizes((await client.get("/metrics")).text, options.path)
        taken: list[float] = []
        statuses: dict[int | str, int] = {}

        async def ask() -> None:
            user = random.choice(users)
            body: dict[str, object] = {"requests": [{"user_id": user, "top_n": options.top_n}]}
            if options.path == "score":
                body = {"rows": [{"user_id": user, "ad_id": random.choice(ads)}]}
            start = time.perf_counter()
            try:
                status: int | str = (await client.post(f"/v1/{options.path}", json=body)).status_code
            except httpx.HTTPError as error:
                status = type(error).__name__
            taken.append(time.perf_counter() - start)
            statuses[status] = statuses.get(status, 0) + 1

        async def closed(end: float) -> None:
            while time.perf_counter() < end:
                await ask()

        async def opened(end: float) -> None:
            running = []
            while time.perf_counter() < end:
                running.append(asyncio.create_task(ask()))
                await asyncio.sleep(random.expovariate(options.rate))
            await asyncio.gather(*running)

        started = time.perf_counter()
        end = started + options.seconds
        if options.rate:
            await opened(end)
        else:
            await asyncio.gather(*(closed(end) for _ in range(options.clients)))
        seconds = time.perf_counter() - started
        after = sizes((await client.get("/metrics")).text, options.path)
    ms = 1000 * np.array(taken)
    print(f"{len(taken):,} requests, {len(taken) / seconds:,.1f} a second; statuses {statuses}")
    print(f"latency ms: p50 {np.percentile(ms, 50):.1f}, p90 {np.percentile(ms, 90):.1f}, p99 {np.percentile(ms, 99):.1f}")
    print(f"mean batch {(after[1] - before[1]) / max(after[0] - before[0], 1):.1f} requests")


def sizes(metrics: str, what: str) -> tuple[float, float]:
    """Count and sum of the batch sizes."""

    def value(name: str) -> float:
        found = re.search(rf'adrec_batch_size_{name}{{what="{what}"}} (\S+)', metrics)
        return float(found.group(1)) if found else 0.0

    return value("count"), value("sum")


if __name__ == "__main__":
    main()
