"""Strategies, cancels, claims and lost workers in any order, on the domain alone: what holds after each step."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runs_es.domain import (
    TERMINAL_FACTS,
    CancelAction,
    ConflictError,
    Fact,
    MultitaskDecision,
    MultitaskStrategy,
    Run,
    RunCancelled,
    RunCancelRequested,
    RunCreated,
    RunDeleted,
    RunRequeued,
    RunStarted,
    RunStatus,
    Thread,
    ThreadStatus,
)

LATER = "2999-01-01T00:00:00+00:00"


class StrategiesOnAThread(RuleBasedStateMachine):
    """A thread that several clients and workers decide on, one append after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = Thread("t")
        self.thread.apply(self.thread.create())
        self.facts: list[Fact] = []
        self.running: set[str] = set()
        self.created: list[str] = []
        self.claims = 0

    def append(self, facts: list[Fact]) -> None:
        for fact in facts:
            self.thread.apply(fact)
            self.facts.append(fact)
            if isinstance(fact, RunStarted):
                self.running.add(fact.run_id)
            elif isinstance(fact, (*TERMINAL_FACTS, RunRequeued)):
                self.running.discard(fact.run_id)
            assert len(self.running) <= 1, "two runs of a thread at once"

    @rule(strategy=st.sampled_from(MultitaskStrategy), delayed=st.booleans())
    def create(self, strategy: MultitaskStrategy, delayed: bool) -> None:
        busy = list(self.thread.active)
        before = self.thread.last_ended
        facts: list[Fact] = []
        try:
            if self.thread.admit(strategy) is MultitaskDecision.CANCEL_EXISTING:
                facts = self.thread.supersede(strategy)
        except ConflictError:
            assert (strategy, bool(busy)) == (MultitaskStrategy.REJECT, True)
            return
        assert strategy is not MultitaskStrategy.REJECT or not busy
        run_id = f"run-{len(self.created)}"
        new = Run.create(
            run_id=run_id,
            thread_id="t",
            assistant_id="a",
            multitask_strategy=strategy,
            due_at=LATER if delayed else None,
        )
        self.append([*facts, *new.pull_events()])
        self.created.append(run_id)
        if strategy is MultitaskStrategy.ENQUEUE:
            assert list(self.thread.active) == [*busy, run_id]
        else:
            # Whoever is still there is in flight, or left something to roll back, and has been told.
            left = [run for run in self.thread.active.values() if run.run_id != run_id]
            assert all(run.cancel_requested is not None and run.attempt > 0 for run in left)
            if strategy is MultitaskStrategy.ROLLBACK:
                assert all(run.cancel_requested is CancelAction.ROLLBACK for run in left)
                assert self.thread.last_ended is before, "what was before the runs that are rolled back is so again"

    @precondition(lambda self: self.thread.active)
    @rule(data=st.data(), action=st.sampled_from(CancelAction), several=st.booleans())
    def cancel(self, data: st.DataObject, action: CancelAction, several: bool) -> None:
        runs = list(self.thread.active.values())
        chosen = runs if several else [data.draw(st.sampled_from(runs))]
        self.append(self.thread.cancel_several(chosen, action))
        for run in chosen:
            now = self.thread.active.get(run.run_id)
            assert now is None or now.cancel_requested is not None

    @precondition(lambda self: self.thread.next_due() is not None)
    @rule()
    def claim(self) -> None:
        """By a worker that finds the thread free, or by the next one after a worker was lost."""
        due = self.thread.next_due()
        assert due is not None
        first = min(
            self.created.index(run.run_id) for run in self.thread.active.values() if run.due_at is None or run.attempt
        )
        asked = due.cancel_requested
        self.claims += 1
        facts = self.thread.claim(due, claim_id=f"c{self.claims}", worker_id="w", frames=0, max_attempts=3)
        assert self.created.index(due.run_id) >= first
        self.append(facts)
        assert asked is None or due.run_id not in self.thread.active, "a run that was cancelled began again"

    @precondition(lambda self: self.running)
    @rule(how=st.sampled_from(["complete", "fail", "time out", "hand over"]))
    def stop(self, how: str) -> None:
        """The worker has come to an end, and its write is refused when somebody has raised the fence since."""
        (run_id,) = self.running
        run = self.thread.run(run_id).copy()
        if run.cancel_requested is not None and how != "hand over":
            run.mark_cancelled(action=run.cancel_requested)
        elif how == "complete":
            run.mark_completed()
        elif how == "fail":
            run.mark_failed("boom")
        elif how == "time out":
            run.mark_timed_out()
        else:
            run.requeue()
        self.append(self.thread.closed(run))

    @precondition(lambda self: self.created)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        self.append(self.thread.delete_run(data.draw(st.sampled_from(self.created))))
        self.running &= set(self.thread.active)

    @invariant()
    def each_run_ends_once_and_a_rolled_back_one_is_gone(self) -> None:
        ends: dict[str, Fact] = {}
        for index, fact in enumerate(self.facts):
            if isinstance(fact, TERMINAL_FACTS):
                assert fact.run_id not in ends
                ends[fact.run_id] = fact
                if isinstance(fact, RunCancelled):
                    last = [
                        f for f in self.facts[:index] if isinstance(f, RunCancelRequested) and f.run_id == fact.run_id
                    ][-1]
                    assert fact.action is CancelAction.INTERRUPT or last.action is CancelAction.ROLLBACK
                    if fact.action is CancelAction.ROLLBACK:
                        follows = self.facts[index + 1]
                        assert isinstance(follows, RunDeleted)
                        assert follows.run_id == fact.run_id
        created = {fact.run_id for fact in self.facts if isinstance(fact, RunCreated)}
        assert created == set(ends) | set(self.thread.active)

    @invariant()
    def the_fold_is_the_same_from_the_start(self) -> None:
        again = Thread.fold("t", [Thread("t").create(), *self.facts])
        assert list(again.active) == list(self.thread.active)
        assert again.status is self.thread.status
        assert (self.thread.status is ThreadStatus.BUSY) == bool(self.thread.active)
        for run_id, run in again.active.items():
            assert run.status is self.thread.active[run_id].status

    def teardown(self) -> None:
        """Whoever works on, comes to an end: nothing is left running or pending but what is delayed."""
        for _ in range(4 * len(self.created) + 4):
            if self.running:
                self.stop("complete")
            elif self.thread.next_due() is not None:
                self.claim()
        with suppress(StopIteration):
            left = next(run for run in self.thread.active.values() if run.due_at is None)
            raise AssertionError(f"{left} never ends")
        assert all(run.status is RunStatus.PENDING for run in self.thread.active.values())


StrategiesOnAThread.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestStrategiesOnAThread = StrategiesOnAThread.TestCase
