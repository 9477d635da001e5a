"""What is asked of a graph whose states cannot be told, and whether an answer that is pasted as it stands will do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from longshort_service.graph_check import ModelError
from longshort_service.graph_facts import GraphFacts, TensorFact
from longshort_service.signature_axes import find_axes
from longshort_service.signature_file import Said, SaidState
from longshort_service.signature_roles import Roles, roles_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    Tensors = Mapping[str, tuple[int | str, ...]]


def roles(inputs: Tensors, outputs: Tensors, said: Said | None = None) -> Roles:
    given, results = (
        tuple(TensorFact(name, "float32", axes) for name, axes in tensors.items())
        for tensors in (inputs, outputs)
    )
    return roles_of(GraphFacts(given, results, frozenset(), ()), said or Said())


def test_two_states_that_look_alike_are_offered_an_output_each_of_their_own_shape():
    state = (1, "n", 8)
    question = roles(
        {"x": ("n", "t", 4), "left": state, "right": state},
        {"out": ("n", "t", 8), "alpha": state, "beta": state},
    ).questions[0]
    assert question.lines == (
        "[states]",
        'left = "alpha"  # or "beta"',
        'right = "beta"  # or "alpha"',
    )


def test_states_without_an_output_for_each_are_not_offered_one_twice():
    state = ("n", 8)
    question = roles({"x": ("n", 4), "a": state, "b": state}, {"y": ("n", 3), "p": state}).questions[0]
    assert question.lines == ("[states]", 'a = "p"', '# or b = "p"')


@pytest.mark.parametrize("output", [("batch", 3), ("batch", 5)])
def test_graph_that_takes_its_values_alone_is_told_to_be_exported_with_its_states(
    output: tuple[int | str, ...],
):
    question = roles({"x": ("batch", 3)}, {"y": output}).questions[0]
    assert "no state among its inputs" in question.text
    assert all(line.startswith("#") for line in question.lines)  # nothing to paste


def test_constant_that_is_all_the_values_is_named_as_what_leaves_none():
    said = Said(constants={"sensor": 1.0})
    question = roles({"sensor": ("n", 3), "h_in": ("n", 8)}, {"y": ("n", 1), "h_out": ("n", 8)}, said)
    assert "it takes h_in beside the constants sensor" in question.questions[0].text


def test_state_that_is_the_only_output_is_refused_with_the_way_out():
    with pytest.raises(ModelError, match="an Identity of it as an output of its own"):
        roles({"x": ("n", 3), "h": ("n", 8)}, {"h_out": ("n", 8)}, Said(states={"h": SaidState("h_out")}))


def test_axis_that_is_called_time_is_offered_as_time_though_the_answers_have_none():
    """PyTorch's exporter writes the example's own time into an answer's shape."""
    found = roles(
        {"x": ("batch", "time", 3), "h": (1, "batch", 8)}, {"y": ("batch", 5, 8), "hn": (1, "batch", 8)}
    )
    (question,) = find_axes(found, Said()).questions
    assert "Is axis 1 of x, float32 [batch, time, 3], its time?" in question.text
    assert question.lines == ("[inputs.x]", 'axes = ["batch", "time", "*"]')
