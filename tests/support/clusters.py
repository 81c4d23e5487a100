"""A separate cluster for tests that lose a master."""

from tests.support.embedded_cluster import EmbeddedCluster, client


async def answer_for_what_is_left(cluster: EmbeddedCluster) -> None:
    """Let each node serve its slots while the master of others is down."""
    for node in (*cluster.masters, *cluster.replicas):
        async with client(node) as admin:
            await admin.config_set("cluster-require-full-coverage", "no")
