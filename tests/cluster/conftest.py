"""A cluster of several nodes on loopback: each has a raylet of its own, and processors that are only said to be apart."""

import os

import pytest
from ports import free_port


@pytest.fixture(scope="session")
def cluster():
    """A head that holds no workers, and two nodes of one processor each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    small = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
    port = free_port()
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "ray_client_server_port": port, **small})
    made.from_outside = f"ray://127.0.0.1:{port}"
    made.nodes = [made.add_node(num_cpus=1, **small) for _ in range(2)]
    made.small = small
    yield made
    made.shutdown()
