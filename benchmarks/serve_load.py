"""Load a running server and print requests a second, latencies, batch sizes, and what the server spent.

    adrec serve --config configs/sample/serve.yaml &
    python benchmarks/serve_load.py --url http://127.0.0.1:8080 --clients 64 --seconds 20 [--rate 50] [--path rank]
    python benchmarks/serve_load.py --one-by-one --config configs/sample/serve.yaml [--path score]

With `--rate` requests come at that rate whatever the answers take (open loop); else each client asks again at once.
`--one-by-one` starts two servers itself, one of which takes each request by itself, and loads them in turns, so that what
else the machine does falls on both. Users and ads are drawn from `--prepared`; without it from what the server offers.
"""

import argparse
import asyncio
import json
import random
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq


class Load(NamedTuple):
    """What one run saw."""

    milliseconds: np.ndarray
    """of all requests"""
    answered: int
    """with status 200"""
    seconds: float
    statuses: dict[str, int]
    batch: float
    server_seconds: float
    megabytes: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds

    @property
    def work(self) -> float:
        """Processor seconds of the server for an answer."""
        return self.server_seconds / max(self.answered, 1)

    def line(self) -> str:
        """For people."""
        p50, p90, p99 = np.percentile(self.milliseconds, [50, 90, 99])
        return (
            f"{self.rate:,.1f} answered/s; ms p50 {p50:.1f}, p90 {p90:.1f}, p99 {p99:.1f};"
            f" mean batch {self.batch:.1f}; server {1000 * self.work:.2f} processor ms an answer,"
            f" {self.megabytes:,.0f} MB; {self.statuses}"
        )


class Client:
    """One kept connection that speaks just enough HTTP/1.1: the load must cost less than what it measures."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body."""
        if self.streams is None or self.streams[0].at_eof():  # the server closes what has been idle for long
            self.streams = await asyncio.open_connection(self.host, self.port)
        reader, writer = self.streams
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        headers = await reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", headers, re.IGNORECASE)
        content = await reader.readexactly(int(found.group(1)) if found else 0)
        return int(headers[9:12]), content


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--path", choices=["rank", "score"], default="rank")
    parser.add_argument("--top-n", type=int, default=10)
    parser.add_argument("--prepared", type=Path)
    parser.add_argument("--one-by-one", action="store_true")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    if options.one_by_one:
        against_one_by_one(options)
    else:
        print(asyncio.run(load(options, options.url)).line())


def against_one_by_one(options: argparse.Namespace) -> None:
    """Both servers in turns: batched, then one request a pass."""
    servers, urls = [], []
    for number, settings in enumerate([[], ["--set", "batching.max_items=1"]]):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        store = ["--set", f"store=/tmp/adrec-load-{port}-{number}.sqlite"]
        command = [
            sys.executable,
            "-m",
            "adrec",
            "serve",
            "-q",
            "-c",
            str(options.config),
            "--port",
            str(port),
            *store,
            *settings,
        ]
        servers.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        urls.append(f"http://127.0.0.1:{port}")
    try:
        for url in urls:
            asyncio.run(ready(url))
        runs: list[list[Load]] = [[], []]
        for url in urls:  # warm
            asyncio.run(load(options, url, seconds=2.0))
        for turn in range(options.turns):
            for place, name in enumerate(("batched", "one by one")):
                runs[place].append(asyncio.run(load(options, urls[place])))
                print(f"turn {turn + 1}, {name}: {runs[place][-1].line()}", flush=True)
    finally:
        for server in servers:
            server.terminate()
    rate = [[run.rate for run in some] for some in runs]
    work = [[run.work for run in some] for some in runs]
    tail = [float(np.median([np.percentile(run.milliseconds, 99) for run in some])) for some in runs]
    print(f"throughput, batched over one by one, by turn: {[f'{a / b:.2f}' for a, b in zip(*rate, strict=True)]}")
    print(f"server's processor time an answer, one by one over batched: {np.median(work[1]) / np.median(work[0]):.2f}")
    print(f"p99 ms (median of turns): batched {tail[0]:.0f}, one by one {tail[1]:.0f}")


async def ready(url: str) -> None:
    """Wait for it."""
    for _ in range(1200):
        try:
            if (await Client(*address(url)).ask("GET", "/health/ready"))[0] == 200:
                return
        except (OSError, asyncio.IncompleteReadError):
            await asyncio.sleep(0.25)
    raise SystemExit(f"{url} never got ready")


async def load(options: argparse.Namespace, url: str, seconds: float | None = None) -> Load:
    """All clients for the given time."""
    clients = [Client(*address(url)) for _ in range(options.clients)]
    spare = clients[0]
    if options.prepared:
        users = pq.read_table(options.prepared / "users.parquet")["user_id"].to_pylist()
        ads = pq.read_table(options.prepared / "ads.parquet")["ad_id"].to_pylist()
    else:
        users = json.loads((await spare.ask("GET", "/v1/about"))[1])["users"]
        first = {"requests": [{"user_id": users[0], "top_n": 10}]}
        found = json.loads((await spare.ask("POST", "/v1/rank", json.dumps(first).encode()))[1])
        ads = [ad["ad_id"] for ad in found["lists"][0]["ads"]]
    before = figures((await spare.ask("GET", "/metrics"))[1].decode(), options.path)
    taken: list[float] = []
    statuses: dict[str, int] = {}

    async def ask(client: Client) -> None:
        body: dict[str, Any] = {"requests": [{"user_id": random.choice(users), "top_n": options.top_n}]}
        if options.path == "score":
            body = {"rows": [{"user_id": random.choice(users), "ad_id": random.choice(ads)}]}
        start = time.perf_counter()
        try:
            status = str((await client.ask("POST", f"/v1/{options.path}", json.dumps(body).encode()))[0])
        except (OSError, asyncio.IncompleteReadError) as error:
            status, client.streams = type(error).__name__, None
        taken.append(time.perf_counter() - start)
        statuses[status] = statuses.get(status, 0) + 1

    started = time.perf_counter()
    end = started + (seconds or options.seconds)

    async def closed(client: Client) -> None:
        while time.perf_counter() < end:
            await ask(client)

    async def opened() -> None:
        idle, running = list(clients), set()

        async def one() -> None:
            client = idle.pop() if idle else Client(*address(url))
            await ask(client)
            idle.append(client)

        due = started
        while due < end:
            due += random.expovariate(options.rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            running.add(asyncio.create_task(one()))
        await asyncio.gather(*running)

    await (opened() if options.rate else asyncio.gather(*(closed(client) for client in clients)))
    passed = time.perf_counter() - started
    after = figures((await Client(*address(url)).ask("GET", "/metrics"))[1].decode(), options.path)
    return Load(
        1000 * np.array(taken),
        statuses.get("200", 0),
        passed,
        statuses,
        (after["sum"] - before["sum"]) / max(after["count"] - before["count"], 1.0),
        after["cpu"] - before["cpu"],
        after["memory"] / 1e6,
    )


def address(url: str) -> tuple[str, int]:
    """Host and port."""
    host, _, port = url.removeprefix("http://").rstrip("/").partition(":")
    return host, int(port or 80)


def figures(metrics: str, what: str) -> dict[str, float]:
    """Batches, processor seconds and memory from the server's own metrics."""
    names = {
        "count": f'adrec_batch_size_count{{what="{what}"}}', "sum": f'adrec_batch_size_sum{{what="{what}"}}',
        "cpu": "process_cpu_seconds_total", "memory": "process_resident_memory_bytes",
    }  # fmt: skip
    lines = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line and not line.startswith("#"))
    return {key: float(lines.get(name, 0.0)) for key, name in names.items()}


if __name__ == "__main__":
    main()
