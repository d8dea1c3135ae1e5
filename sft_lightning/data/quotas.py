"""Division of a number of examples among classes."""

import heapq
import math


def quotas(counts: dict[int, int], total: int, keep: int = 0) -> dict[int, int]:
    """Divide a total among classes in proportion to their counts, with at least one each if the total allows it.

    Labels are assigned one by one: the first for every class, and the rest by the Sainte-Laguë method. Unlike the
    largest-remainder method, this never gives a class fewer labels when the total grows.

    Args:
        counts: Number of available examples, by class.
        total: Number to divide, at most the sum of the counts.
        keep: Minimum number of examples to leave in each class, if the total allows it for all of them.
    """
    if total > sum(max(0, n - keep) for n in counts.values()):
        keep = 0
    shares = dict.fromkeys(counts, 0)
    # Ties go to the larger class, then to the smaller class number: the result depends on the counts alone.
    queue = [(-math.inf, -n, c) for c, n in counts.items() if n > keep]
    heapq.heapify(queue)
    for _ in range(total):
        _, n, c = heapq.heappop(queue)
        shares[c] += 1
        if shares[c] < -n - keep:
            heapq.heappush(queue, (n / (2 * shares[c] + 1), n, c))
    return shares
