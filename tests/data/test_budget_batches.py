"""Batches of examples of similar size within a budget: complete, bounded, and the same from any start."""

import torch
from hypothesis import given, strategies as st

from sft_lightning.data.budget_batches import BudgetPlan, cut_by_budget

SETTINGS = {"sizes": st.lists(st.integers(1, 40), min_size=4, max_size=70), "seed": st.integers(0, 2**33)}


@given(budget=st.integers(40, 300), world=st.integers(1, 4), **SETTINGS)
def test_a_pass_holds_each_example_once_and_batches_keep_to_the_budget(
    sizes: list[int], seed: int, budget: int, world: int
) -> None:
    lengths = torch.tensor(sizes)
    ranks = [BudgetPlan(lengths, budget, seed, rank, world) for rank in range(world)]
    (steps,) = {plan.per_pass for plan in ranks}
    for number in range(2):
        met, over = [], 0
        for k in range(number * steps, (number + 1) * steps):
            pieces = [plan[k][0] for plan in ranks]
            assert min(map(len, pieces)) >= 1
            assert len({plan[k][1] for plan in ranks}) == world
            over += max(len(piece) * int(lengths[piece].max()) for piece in pieces) > budget
            met += torch.cat(pieces).tolist()
        assert sorted(met) == [*range(len(sizes))]
        assert over <= (world > 1)  # the examples that are too few for all processes
    later = BudgetPlan(lengths, budget, seed, 0, world)  # a resumed run asks for a batch in the middle first
    k = steps + steps // 2
    assert torch.equal(later[k][0], ranks[0][k][0])


def test_batches_hold_as_many_examples_as_fit() -> None:
    assert cut_by_budget([8] * 10 + [16] * 4 + [32], 32) == [4, 4, 2, 2, 2, 1]
    assert cut_by_budget([8] * 9, 32, world_size=2) == [7, 2]
    assert cut_by_budget([32] * 3, 32, world_size=2) == [3]


def test_passes_differ_in_the_examples_that_meet_and_in_the_order_of_lengths() -> None:
    plan = BudgetPlan(torch.arange(400) % 32 + 1, 64, 0)
    passes = [[plan[k][0].tolist() for k in range(n * plan.per_pass, (n + 1) * plan.per_pass)] for n in range(2)]
    again = {frozenset(batch) for batch in passes[0]} & {frozenset(batch) for batch in passes[1]}
    assert len(again) < 0.2 * plan.per_pass
    longest = [max(i % 32 for i in batch) // 8 for batch in passes[0]]  # sizes count by eights
    assert longest not in (sorted(longest), sorted(longest, reverse=True))
