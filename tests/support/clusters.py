"""A cluster of a test's own, of which a master is to be lost."""

from worker.local.cluster import EmbeddedCluster, client


async def answer_for_what_is_left(cluster: EmbeddedCluster) -> None:
    """Let each node go on with the slots it knows while the master of others is away."""
    for node in (*cluster.masters, *cluster.replicas):
        async with client(node) as admin:
            await admin.config_set("cluster-require-full-coverage", "no")
