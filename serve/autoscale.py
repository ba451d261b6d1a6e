"""How many engines a model needs: by the requests that there are, and by how full their caches are.

Ray applies the bounds, the delays and, from none to one, the start by the first request.
"""

import math
from typing import Any

from ray.serve.config import AutoscalingContext

FULL = 0.85
"""Share of the pages held above which an engine is short of them: soon it pre-empts answers."""


def engines(ctx: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Ray Serve's autoscaling policy: the larger of what the queue and what the caches ask for."""
    assert ctx.config is not None
    usage = (ctx.aggregated_metrics or {}).get("kv_cache_usage_perc", {})
    waiting = (ctx.aggregated_metrics or {}).get("num_requests_waiting", {})
    channels = (ctx.aggregated_metrics or {}).get("num_channels", {})
    wanted = wanted_replicas(
        max(0.0, ctx.total_num_requests - sum(channels.values())),  # Ray counts them as requests
        ctx.config.target_ongoing_requests,
        len(ctx.running_replicas),
        list(usage.values()),
        sum(waiting.values()),
    )
    return wanted, {}


def wanted_replicas(
    n_requests: float, target: float, n_running: int, usage: list[float], n_waiting: float
) -> float:
    """`target` requests an engine; one more where the engines are short of pages while answers wait for some."""
    by_queue = n_requests / target
    by_cache = 0
    if usage and n_waiting >= 1 and sum(usage) / len(usage) > FULL:
        by_cache = n_running + 1
    return max(math.ceil(by_queue), by_cache)
