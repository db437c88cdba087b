"""The state machine of a run, under any order of events."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenray.errors import DefinitionError
from zenray.graph import Graph
from zenray.model import Status


def test_a_step_run_is_ready_once_and_only_after_all_it_depends_on() -> None:
    graph = Graph()
    for name, needs in (("a", ()), ("b", ()), ("c", ("a", "b"))):
        graph.add(name, needs)
    assert graph.take_ready() == ["a", "b"]
    assert graph.take_ready() == []
    graph.succeed("a")
    assert graph.take_ready() == []
    graph.succeed("b", is_cached=True)
    assert graph.take_ready() == ["c"]


def test_a_dependency_that_comes_later_is_a_cycle_and_refused() -> None:
    graph = Graph()
    with pytest.raises(DefinitionError, match="cycle"):
        graph.add("a", ["b"])
    with pytest.raises(DefinitionError, match="cycle"):
        graph.add("a", ["a"])


def test_a_name_is_taken_once() -> None:
    graph = Graph()
    graph.add("a", [])
    with pytest.raises(DefinitionError, match="already"):
        graph.add("a", [])


def test_a_step_run_added_below_a_failed_one_is_skipped_at_once() -> None:
    graph = Graph()
    graph.add("a", [])
    assert graph.fail("a") == []
    assert graph.add("b", ["a"]) == "a"
    assert graph.status("b") is Status.SKIPPED
    assert graph.is_finished


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], list[tuple[int, str]]]:
    """Draw a graph, as each node's dependencies, and events that hit its nodes in any order."""
    size = draw(st.integers(1, 12))
    needs = [tuple(draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else ()) for i in range(size)]
    outcome = st.sampled_from(["succeed", "cache", "fail"])
    return needs, draw(st.lists(st.tuples(st.integers(0, size - 1), outcome), max_size=40))


@given(histories(), st.booleans())
def test_whatever_happens_every_step_run_ends_once_and_nothing_runs_on_missing_inputs(
    history: tuple[list[tuple[int, ...]], list[tuple[int, str]]], is_cancelled: bool
) -> None:
    needs, events = history
    graph = Graph()
    for i, before in enumerate(needs):
        graph.add(str(i), map(str, before))
    begun: list[str] = []
    ended: dict[str, Status] = {}

    def take() -> None:
        for name in graph.take_ready():
            assert name not in begun
            assert all(graph.status(str(n)).has_outputs for n in needs[int(name)])
            begun.append(name)
            graph.start(name)

    take()
    for index, outcome in events:
        name = str(index)
        if name not in begun:
            continue
        before = graph.status(name)
        if outcome == "fail":
            for other in graph.fail(name):
                assert graph.status(other) is Status.SKIPPED
        else:
            assert graph.succeed(name, is_cached=outcome == "cache") is not before.is_finished
        if before.is_finished:
            assert graph.status(name) is before
        else:
            ended[name] = graph.status(name)
        take()
    for name, status in ended.items():
        assert graph.status(name) is status
    if is_cancelled:
        graph.cancel()
        assert graph.is_finished
    else:
        for name in list(begun):
            graph.succeed(name)
            take()
        while (open_names := [n for n in begun if not graph.status(n).is_finished]) or (graph.take_ready()):
            for name in open_names:
                graph.succeed(name)
            take()
        assert graph.is_finished
    assert all(graph.status(str(i)).is_finished for i in range(len(needs)))
