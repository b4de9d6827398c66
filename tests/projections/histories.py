"""Random legal histories of threads, told by the domain itself, and what of them the log is given."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from runs_es.domain import (
    CancelAction,
    EventCategory,
    EventRecorded,
    Fact,
    MessageRecorded,
    MessageRemoved,
    Run,
    RunStatus,
    Thread,
    ThreadErased,
    now,
)
from runs_es.log.event_log import EventLog

T = TypeVar("T")
Choose = Callable[[Sequence[Any]], Any]

# What JSON and texts may hold and a database may stumble over.
VALUES: tuple[Any, ...] = (
    None,
    "plain",
    "nul \x00 in it",
    "a noncharacter \ufdd0 and \ufdd00 and \\u0000",
    {"z": 1, "a": {"nested\x00key": [1, 2.5, None, True]}, "m": "é𝄞"},
    [],
    12345678901234,
)
# What messages say of what they took: as it should be, again the same, and as nobody should say it.
SPOKEN: tuple[Any, ...] = (
    *VALUES,
    *(
        {"usage_metadata": usage, "response_metadata": {"model_name": model}}
        for usage, model in (
            ({"input_tokens": 7, "output_tokens": 5, "input_token_details": {"cache_read": 3}}, "model-1"),
            ({"input_tokens": 7, "output_tokens": 5, "input_token_details": {"cache_read": 3}}, "model-1"),
            ({"input_tokens": 100, "output_tokens": 50, "output_token_details": {"reasoning": 20}}, "model\x00"),
            ({"input_tokens": -1, "output_tokens": "many", "input_token_details": None}, None),
        )
    ),
)
METADATA: tuple[dict[str, Any], ...] = ({}, {"z": "last", "a": "first"}, {"nul": "\x00"}, {"a": [1, {"b": 2}]})
TEXTS = ("boom", "nul \x00 here", "", "\ufdd01", "ß" * 300)
TIMES = (None, "2026-01-02T03:04:05+02:00", "2026-01-02T03:04:05.678901-11:30")


class Teller:
    """Tells one thread's story: each `tell` is something that may happen next."""

    def __init__(self, thread_id: str, choose: Choose) -> None:
        self.thread = Thread(thread_id)
        self.facts: list[Fact] = []
        self.runs: dict[str, Run] = {}  # those that are there
        self.said: list[tuple[str, str, str | None]] = []  # message, run, type or None where it was removed
        self._choose = choose
        self._number = 0
        self._messages: list[str] = []

    def tell(self) -> None:
        self._choose(list(self._possible()))()

    def _possible(self) -> Iterator[Callable[[], None]]:
        if not self.thread.exists:
            yield lambda: self._record(
                self.thread.create(metadata=self._choose(METADATA), user_id=self._choose((None, "ann", "bob\x00")))
            )
            return
        yield self._create_run
        yield lambda: self._record(self.thread.update(self._choose(METADATA)))
        active = list(self.thread.active.values())
        for run in active:
            yield from self._moves(run.copy())
        if self._choose(range(8)) == 0:  # the end of a run or of everything is rarer
            yield lambda: self._record(*self.thread.delete())
            yield lambda: self._record(ThreadErased(thread_id=self.thread.thread_id, occurred_at=now(), events=1))
            for run_id in self.runs:
                yield lambda run_id=run_id: self._record(*self.thread.delete_run(run_id))  # type: ignore[misc]

    def _create_run(self) -> None:
        self._number += 1
        run = Run.create(
            run_id=f"{self.thread.thread_id}-run-{self._number}",
            thread_id=self.thread.thread_id,
            assistant_id="agent",
            metadata=self._choose(METADATA),
            kwargs={"zeta": self._choose(VALUES), "alpha": {"y": 1, "b": 2}},
            model_name=self._choose((None, "model\x00")),
            user_id=self.thread.user_id,
            created_at=self._choose(TIMES),
        )
        self._record(*run.pull_events())

    def _moves(self, run: Run) -> Iterator[Callable[[], None]]:
        def told(change: Callable[[], None]) -> Callable[[], None]:
            def tell() -> None:
                change()
                self._record(*run.pull_events())

            return tell

        if run.cancel_requested is None:
            yield told(run.request_cancel)
        if run.status is RunStatus.PENDING:
            yield told(lambda: _begin(run))
            yield told(lambda: run.mark_cancelled(at=self._choose(TIMES)))
            yield lambda: self._record(*self.thread.cancel(run.run_id, CancelAction.ROLLBACK))
            return
        yield told(lambda: run.mark_completed(checkpoint_id="cp"))
        yield told(lambda: run.mark_completed(interrupts={"task": [{"id": "i", "value": self._choose(VALUES)}]}))
        yield told(lambda: run.mark_failed(self._choose(TEXTS), error_type="Boom\x00"))
        yield told(run.mark_timed_out)
        yield told(run.mark_cancelled)
        yield told(run.requeue)
        if self._choose(range(4)) == 0:
            yield lambda: self._roll_back(run)
        yield lambda: self._say(run)
        yield lambda: self._say(run)
        yield lambda: self._note(run)
        if self._messages:
            yield lambda: self._unsay(run)

    def _roll_back(self, run: Run) -> None:
        run.request_cancel(action=CancelAction.ROLLBACK)
        run.mark_cancelled(action=CancelAction.ROLLBACK)
        self._record(*self.thread.closed(run))

    def _say(self, run: Run) -> None:
        self._messages.append(f"m{len(self._messages)}")
        self._record(
            MessageRecorded(
                thread_id=run.thread_id,
                run_id=run.run_id,
                occurred_at=now(),
                message_id=self._choose(self._messages[-3:]),
                event_type=self._choose(("human", "ai", "nul\x00")),
                content=self._choose(SPOKEN),
                metadata=self._choose(METADATA),
            )
        )

    def _unsay(self, run: Run) -> None:
        self._record(
            MessageRemoved(
                thread_id=run.thread_id,
                run_id=run.run_id,
                occurred_at=now(),
                message_id=self._choose(self._messages[-3:]),
                reason=self._choose(TEXTS),
            )
        )

    def _note(self, run: Run) -> None:
        self._record(
            EventRecorded(
                thread_id=run.thread_id,
                run_id=run.run_id,
                occurred_at=now(),
                event_type="tool",
                kind=self._choose((EventCategory.TRACE, EventCategory.OUTPUTS)),
                content=self._choose(VALUES),
            )
        )

    def _record(self, *facts: Fact) -> None:
        for fact in facts:
            self.thread.apply(fact)
            self.facts.append(fact)
            self._follow(fact)

    def _follow(self, fact: Fact) -> None:
        """The runs and messages that a reader would find."""
        if isinstance(fact, MessageRecorded | MessageRemoved):
            said_as = fact.event_type if isinstance(fact, MessageRecorded) else None
            self.said.append((fact.message_id, fact.run_id, said_as))
        if fact.topic in ("thread.deleted", "thread.erased"):
            self.runs.clear()
            self.said.clear()
        elif fact.topic == "run.created":
            self.runs[fact.run_id] = Run(fact)  # type: ignore[attr-defined,arg-type]
        elif fact.topic == "run.deleted":
            self.runs.pop(fact.run_id, None)  # type: ignore[attr-defined]
            self.said = [each for each in self.said if each[1] != fact.run_id]  # type: ignore[attr-defined]
        elif not fact.topic.startswith("thread."):
            self.runs[fact.run_id].apply(fact)  # type: ignore[attr-defined]


def _begin(run: Run) -> None:
    run.mark_claimed(claim_id="claim", worker_id="w")
    run.mark_started()


def tell_all(tellers: Sequence[Teller], steps: int, choose: Choose) -> None:
    for _ in range(steps):
        choose(tellers).tell()


def append(log: EventLog, tellers: Sequence[Teller], dice: random.Random) -> int:
    """Append these stories in pieces, the threads' pieces mixed; returns the last position."""
    left = {teller.thread.thread_id: list(teller.facts) for teller in tellers if teller.facts}
    revisions = dict.fromkeys(left, 0)
    position = 0
    while left:
        futures = []
        for thread_id in dice.sample(sorted(left), k=min(len(left), 8)):
            size = dice.randint(1, 6)
            piece, left[thread_id] = left[thread_id][:size], left[thread_id][size:]
            futures.append(log.append(thread_id, piece, expected=revisions[thread_id]))
            revisions[thread_id] += len(piece)
            if not left[thread_id]:
                del left[thread_id]
        position = max([position, *(future.result(30).position or 0 for future in futures)])
    return position


def random_stories(log: EventLog, seed: int, *, threads: int, steps: int, prefix: str = "t") -> list[Teller]:
    """`steps` things that happen in `threads` threads, appended."""
    dice = random.Random(seed)
    tellers = [Teller(f"{prefix}{number}", dice.choice) for number in range(threads)]
    tell_all(tellers, steps, dice.choice)
    append(log, tellers, dice)
    return tellers
