"""Which pause a resume is for, and whether it still waits when the resume's turn has come."""

from __future__ import annotations

from typing import Any

import pytest

from runs_es.domain import CancelAction, Fact, Run, RunFailed, RunStarted, Thread, ThreadStatus

LEFT, RIGHT = "a" * 32, "b" * 32
ASKED = {"task": [{"id": LEFT, "value": "left?"}, {"id": RIGHT, "value": "right?"}]}
LATER = "2999-01-01T00:00:00+00:00"


class Story:
    """A thread that is paused, and what is done with it."""

    def __init__(self, **pause: Any) -> None:
        self.thread = Thread("t")
        self.append([self.thread.create()])
        self.create("asking", input={})
        assert self.begins("asking")
        self.complete("asking", **{"interrupts": ASKED, "checkpoint_id": "c1", **pause})

    def append(self, facts: list[Fact]) -> list[Fact]:
        for fact in facts:
            self.thread.apply(fact)
        return facts

    def create(self, run_id: str, due_at: str | None = None, **kwargs: Any) -> None:
        run = Run.create(run_id=run_id, thread_id="t", assistant_id="a", due_at=due_at, kwargs=kwargs)
        self.append(run.pull_events())

    def answer(self, run_id: str, resume: Any = "yes", **kwargs: Any) -> None:
        self.create(run_id, command={"resume": resume}, **kwargs)

    def begins(self, run_id: str) -> bool:
        run = self.thread.run(run_id)
        facts = self.append(self.thread.claim(run, claim_id="c", worker_id="w", frames=0, max_attempts=3))
        assert isinstance(facts[-1], RunStarted | RunFailed)
        assert isinstance(facts[-1], RunStarted) or facts[-1].error_type == "UnknownInterruptError"
        return isinstance(facts[-1], RunStarted)

    def complete(self, run_id: str, **how: Any) -> None:
        run = self.thread.run(run_id).copy()
        run.mark_completed(**how)
        self.append(self.thread.closed(run))

    def cancel(self, run_id: str, action: CancelAction = CancelAction.INTERRUPT) -> None:
        self.append(self.thread.cancel(run_id, action))

    def does(self, run_id: str, **how: Any) -> None:
        assert self.begins(run_id)
        self.complete(run_id, **how)


def test_of_two_that_saw_the_same_question_the_second_is_refused_and_the_thread_stays_as_it_was() -> None:
    story = Story()
    story.answer("first")
    story.answer("second")
    story.does("first", interrupts=ASKED)
    assert not story.begins("second")
    assert story.thread.status is ThreadStatus.INTERRUPTED
    assert story.thread.last_ended is not None
    assert story.thread.last_ended.run_id == "first"
    story.answer("third")
    assert story.begins("third")


@pytest.mark.parametrize("how", ["cancelled", "rolled back"])
def test_the_second_acts_when_the_first_never_did(how: str) -> None:
    story = Story()
    story.answer("first")
    story.answer("second")
    if how == "rolled back":
        assert story.begins("first")
        story.cancel("first", CancelAction.ROLLBACK)
        run = story.thread.run("first").copy()
        run.mark_cancelled(action=CancelAction.ROLLBACK)
        story.append(story.thread.closed(run))
    else:
        story.cancel("first")
    assert story.begins("second")


def test_one_that_comes_while_the_question_is_being_asked_answers_it() -> None:
    story = Story()
    story.create("asks again", input={})
    story.answer("early")
    story.answer("same")
    story.does("asks again", interrupts=ASKED)
    story.does("early")
    assert not story.begins("same")


def test_answers_by_id_rival_only_those_to_the_same_question() -> None:
    story = Story()
    story.answer("left", {LEFT: 1})
    story.answer("right", {RIGHT: 1})
    story.answer("left again", {LEFT: 2})
    story.answer("by value")
    story.does("left", interrupts=ASKED)
    story.does("right", interrupts=ASKED)
    assert not story.begins("left again")
    assert not story.begins("by value")


def test_whoever_takes_over_a_run_that_answers_goes_on_with_it() -> None:
    story = Story()
    story.answer("first")
    assert story.begins("first")
    assert story.begins("first")


def test_a_delayed_run_ahead_does_not_stand_between_an_answer_and_its_question() -> None:
    story = Story()
    story.create("tomorrow", due_at=LATER, input={})
    story.answer("now")
    assert story.begins("now")


def test_an_answer_to_a_run_that_failed_may_be_tried_again_once() -> None:
    story = Story()
    story.answer("first")
    assert story.begins("first")
    failed = story.thread.run("first").copy()
    failed.mark_failed("boom")
    story.append(story.thread.closed(failed))
    story.answer("again")
    story.answer("and again")
    story.does("again")
    assert not story.begins("and again")


def test_going_on_without_input_from_a_pause_is_an_answer_too() -> None:
    story = Story(interrupts={"task": []})
    story.create("on", input=None)
    story.create("on again", input=None)
    story.does("on", interrupts={"task": []})
    assert not story.begins("on again")


@pytest.mark.parametrize(
    "other",
    [
        {"input": {"messages": []}},
        {"command": {"goto": "node"}},
        {"command": {"resume": "yes"}, "checkpoint_id": "c0"},
        {"command": {"resume": "yes"}, "checkpoint": {"checkpoint_id": "c0"}},
    ],
    ids=str,
)
def test_what_begins_anew_or_at_an_earlier_checkpoint_is_no_answer(other: dict[str, Any]) -> None:
    story = Story()
    story.answer("first")
    story.create("second", **other)
    story.does("first")
    assert story.begins("second")


def test_an_answer_at_the_checkpoint_of_the_pause_is_to_that_pause() -> None:
    story = Story()
    story.answer("first", checkpoint_id="c1")
    story.answer("second", checkpoint={"checkpoint_id": "c1"})
    story.does("first")
    assert not story.begins("second")


def test_where_nothing_waits_the_executor_has_its_say() -> None:
    story = Story(interrupts={})
    for name in ("first", "second"):
        story.answer(name)
    story.does("first")
    assert story.begins("second")


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_who_deletes_the_run_that_asked_does_not_change_who_answers(when: str) -> None:
    story = Story()
    for name, moment in (("first", "before"), ("second", "between"), ("", "after")):
        if moment == when:
            story.append(story.thread.delete_run("asking"))
            assert story.thread.status is (ThreadStatus.IDLE if when == "before" else ThreadStatus.BUSY)
        if name:
            story.answer(name)
    story.does("first", interrupts=ASKED)
    assert not story.begins("second")
