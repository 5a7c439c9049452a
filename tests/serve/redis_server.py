"""A real redis-server on a free port, for the tests that run against both stores."""

import shutil
import socket
import subprocess
import time
from contextlib import contextmanager

import pytest
from ports import free_port

REDIS = shutil.which("redis-server")
needs_redis = pytest.mark.skipif(REDIS is None, reason="no redis-server here (Debian package redis-server)")


@contextmanager
def redis_server(folder, port=None):
    """Its URL. It keeps its data in `folder`: started again there it goes on."""
    pytest.importorskip("redis")
    port = port or free_port()
    settings = ["--port", str(port), "--dir", str(folder), "--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    server = subprocess.Popen([REDIS, *settings], stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1) as link:
                    link.sendall(b"PING\r\n")
                    if link.recv(16).startswith(b"+PONG"):
                        break
            except OSError:
                assert server.poll() is None, "redis-server stopped"
            time.sleep(0.05)
        yield server, f"redis://127.0.0.1:{port}/0"
    finally:
        server.kill()
        server.wait()
