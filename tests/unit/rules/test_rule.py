"""How findings rank, which links are fast, and which rules look at what."""

from planner.readers.flag_tables import Framework
from planner.rules.registry import lock_rules, priced_rules, unread_rules
from planner.rules.rule import Severity, fast_links


def test_errors_are_worse_than_warnings_and_these_than_notes() -> None:
    assert sorted(Severity, key=lambda severity: severity.rank) == [Severity.ERROR, Severity.WARNING, Severity.NOTE]


def test_fast_links_join_a_domain_where_a_cluster_says_so_or_else_a_node() -> None:
    assert fast_links(None, 8) == (8, "nodes of 8 GPUs")
    assert fast_links(72, 8) == (72, "the 72 GPUs that fast links join")


def test_each_kind_of_input_has_rules_of_its_own() -> None:
    def ids(framework: Framework) -> list[str]:
        return [rule.id for rule in (*priced_rules(framework), *lock_rules(framework))]

    training = ["MEM001", "MEM002", "MEM003", "MEM004", "ADV001", "ADV002"]
    locks = ["LCK001", "LCK002", "LCK003", "LCK004", "LCK005", "LCK009"]
    assert ids(Framework.MEGATRON) == ids(Framework.DEEPSPEED) == [*training, *locks]
    assert [rule.id for rule in unread_rules()] == ["FIL001"]
    assert ids(Framework.VLLM) == ["MEM101", "MEM102", "MEM103", "LCK006", "LCK007", "LCK008"]
