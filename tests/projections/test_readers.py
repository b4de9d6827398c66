"""What callers read: runs, messages, events and threads; their own writes, cursors, deletions, odd characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import psycopg
import pytest

from runs_es.domain import (
    EventCategory,
    EventRecorded,
    Fact,
    MessageRecorded,
    Provenance,
    Run,
    RunClaimed,
    RunCompleted,
    RunCreated,
    RunDeleted,
    RunFailed,
    RunNotFound,
    RunStarted,
    RunStatus,
    ThreadCreated,
    ThreadDeleted,
    ThreadNotFound,
    ThreadUpdated,
    WriteConflict,
    now,
)
from runs_es.log.event_log import EventLog
from runs_es.log.pages import frame
from runs_es.service.commands import ListRunMessagesQuery, ListRunsQuery
from runs_es.service.ports import RunEventLog, RunRepository
from runs_projections import LiveProjector, ProjectedEvents, ProjectedRuns, ProjectedThreads
from tests.projections.following import following


@pytest.fixture
def runs(log: EventLog, projector: LiveProjector) -> ProjectedRuns:
    return ProjectedRuns(log, projector)


@pytest.fixture
def events(log: EventLog, projector: LiveProjector) -> ProjectedEvents:
    return ProjectedEvents(log, projector)


@pytest.fixture
def threads(log: EventLog, projector: LiveProjector) -> ProjectedThreads:
    return ProjectedThreads(log, projector)


class Author:
    """Writes one thread's facts, and knows its revision."""

    def __init__(self, log: EventLog, thread_id: str = "t", **values: Any) -> None:
        self.log, self.thread_id = log, thread_id
        self.revision = 0
        self.write(self.fact(ThreadCreated, **values))

    def fact(self, of: type[Any], run_id: str | None = None, /, **values: Any) -> Fact:
        if run_id is not None:
            values["run_id"] = run_id
        made = of(thread_id=self.thread_id, occurred_at=now(), **values)
        assert isinstance(made, Fact)
        return made

    def write(self, *facts: Fact, page: tuple[str, list[bytes]] | None = None, by: Provenance | None = None) -> int:
        """Append; returns the first seq."""
        appended = self.log.append(
            self.thread_id, facts, expected=self.revision, page=page, provenance=by or Provenance()
        ).result(30)
        self.revision = appended.revision
        return appended.first_seq

    def run(self, run_id: str, **values: Any) -> int:
        return self.write(self.fact(RunCreated, run_id, assistant_id="agent", **values))

    def start(self, run_id: str, *frames: tuple[str, Any]) -> int:
        bodies = [frame(name, orjson.dumps(data)) for name, data in frames]
        facts = (self.fact(RunClaimed, run_id, claim_id="secret"), self.fact(RunStarted, run_id))
        return self.write(*facts, page=(run_id, bodies) if bodies else None)

    def say(self, run_id: str, message_id: str, content: Any = None, **values: Any) -> int:
        return self.write(self.fact(MessageRecorded, run_id, message_id=message_id, content=content, **values))


def seqs(items: Sequence[Any]) -> list[int]:
    return [item.seq for item in items]


class TestRuns:
    def test_a_client_reads_its_own_writes(self, log: EventLog, runs: ProjectedRuns) -> None:
        author = Author(log)
        for number in range(50):
            author.run(f"r{number}")
            listed = runs.list_by_thread(ListRunsQuery(thread_id="t"))
            assert listed.current
            assert listed[0].run_id == f"r{number}"
            assert len(listed) == number + 1

    def test_and_reads_them_when_another_process_projects(self, log: EventLog) -> None:
        with following(log.url):
            author, runs = Author(log), ProjectedRuns(log)
            for number in range(10):
                author.run(f"r{number}")
                listed = runs.list_by_thread(ListRunsQuery(thread_id="t"))
                assert listed.current
                assert listed[0].run_id == f"r{number}"

    def test_past_its_bound_a_list_answers_what_it_has_and_says_so(self, log: EventLog) -> None:
        Author(log).run("r")

        listed = ProjectedRuns(log, wait=0.05).list_by_thread(ListRunsQuery(thread_id="t"))

        assert (list(listed), listed.current, listed.position) == ([], False, 0)

    def test_lists_are_newest_first_with_limit_offset_and_status(self, log: EventLog, runs: ProjectedRuns) -> None:
        author = Author(log)
        for number in range(5):
            author.run(f"r{number}")
        author.start("r1")

        def ids(**query: Any) -> list[str]:
            return [run.run_id for run in runs.list_by_thread(ListRunsQuery(thread_id="t", **query))]

        assert ids() == ["r4", "r3", "r2", "r1", "r0"]
        assert ids(limit=2) == ["r4", "r3"]
        assert ids(limit=2, offset=3) == ["r1", "r0"]
        assert ids(status="running") == ["r1"]
        assert ids(limit=0) == []

    def test_a_listed_run_is_what_getting_it_gives(self, log: EventLog, runs: ProjectedRuns) -> None:
        kwargs = {"zeta": "\x00", "alpha": {"y": 1, "b\x00": [None]}, "mark": "\ufdd0"}
        author = Author(log)
        author.run("r", kwargs=kwargs, metadata={"z": 1, "a": "\x00"}, model_name="m\x00", user_id="ann")
        author.start("r")
        author.write(author.fact(RunFailed, "r", error="nul \x00 inside", error_type="Odd\x00"))

        (listed,) = runs.list_by_thread(ListRunsQuery(thread_id="t"))
        got = runs.get("r")

        assert got is not None
        assert listed == type(listed).from_run(got)
        assert list(listed.kwargs) == ["zeta", "alpha", "mark"]
        assert listed.kwargs == kwargs
        assert listed.error == "nul \x00 inside"

    def test_a_run_of_another_thread_or_user_reads_as_absent(self, log: EventLog, runs: ProjectedRuns) -> None:
        author = Author(log)
        author.run("hers", user_id="ann")
        author.run("anyones")

        assert runs.get("hers") is not None
        assert runs.get("hers", thread_id="t", user_id="ann") is not None
        assert runs.get("hers", thread_id="other") is None
        assert runs.get("hers", user_id="bob") is None
        assert runs.get("anyones", user_id="bob") is not None
        assert runs.get("unknown") is None
        listed = runs.list_by_thread(ListRunsQuery(thread_id="t", user_id="bob"))
        assert [run.run_id for run in listed] == ["anyones"]

    def test_a_run_of_a_deleted_thread_is_gone_even_when_the_thread_comes_back(
        self, log: EventLog, runs: ProjectedRuns
    ) -> None:
        author = Author(log)
        author.run("old")
        author.write(author.fact(ThreadDeleted))
        assert runs.get("old") is None
        assert runs.list_by_thread(ListRunsQuery(thread_id="t")) == []

        author.write(author.fact(ThreadCreated))
        author.run("new")

        assert runs.get("old") is None
        assert runs.get("new") is not None
        assert [run.run_id for run in runs.list_by_thread(ListRunsQuery(thread_id="t"))] == ["new"]

    def test_a_saved_run_is_recorded_fact_by_fact(self, log: EventLog, runs: ProjectedRuns) -> None:
        Author(log)
        run = Run.create(run_id="r", thread_id="t", assistant_id="agent")
        runs.save(run, Provenance(actor="ann"))

        again = runs.get("r")
        assert again is not None
        again.mark_started()
        runs.save(again)
        runs.save(again)  # nothing is pending any more

        assert [each.fact.topic for each in log.reader.run_facts("r")] == ["run.created", "run.started"]
        assert log.reader.run_facts("r")[0].provenance.actor == "ann"

    def test_saving_a_run_that_changed_meanwhile_is_refused(self, log: EventLog, runs: ProjectedRuns) -> None:
        Author(log)
        runs.save(Run.create(run_id="r", thread_id="t", assistant_id="agent"))
        mine, theirs = runs.get("r"), runs.get("r")
        assert mine is not None
        assert theirs is not None
        theirs.mark_started()
        runs.save(theirs)

        mine.mark_failed("too late")
        with pytest.raises(WriteConflict):
            runs.save(mine)
        with pytest.raises(WriteConflict):
            runs.save(Run.create(run_id="r", thread_id="t", assistant_id="agent"))
        with pytest.raises(ThreadNotFound):
            runs.save(Run.create(run_id="r2", thread_id="nowhere", assistant_id="agent"))

    def test_saving_does_not_mind_what_others_do_in_the_thread(self, log: EventLog, runs: ProjectedRuns) -> None:
        author = Author(log)
        runs.save(Run.create(run_id="r", thread_id="t", assistant_id="agent"))
        mine = runs.get("r")
        assert mine is not None
        author.revision += 1
        author.run("another")

        mine.mark_started()
        runs.save(mine)

        assert runs.get("r").status is RunStatus.RUNNING  # type: ignore[union-attr]

    def test_deleting_takes_a_run_and_its_messages_out_of_every_list(
        self, log: EventLog, runs: ProjectedRuns, events: ProjectedEvents
    ) -> None:
        author = Author(log)
        author.run("r")
        author.start("r")
        author.say("r", "m")
        author.write(author.fact(RunCompleted, "r"))

        runs.delete("r", provenance=Provenance(actor="ann"))

        assert runs.get("r") is None
        assert runs.list_by_thread(ListRunsQuery(thread_id="t")) == []
        assert events.list_messages_by_run(ListRunMessagesQuery(thread_id="t")) == []
        with pytest.raises(RunNotFound):
            runs.delete("r")

    def test_threads_with_something_to_do_are_found(self, log: EventLog, runs: ProjectedRuns) -> None:
        for thread_id in ("idle", "pending", "running"):
            author = Author(log, thread_id)
            author.run(f"{thread_id}-run")
            if thread_id != "pending":
                author.start(f"{thread_id}-run")
        author = Author(log, "x")
        runs.delete("idle-run")
        runs.list_by_thread(ListRunsQuery(thread_id="idle"))

        assert runs.active_threads() == ["pending", "running"]

    def test_they_are_the_ports_of_the_service(self, runs: ProjectedRuns, events: ProjectedEvents) -> None:
        repository: RunRepository = runs
        event_log: RunEventLog = events
        assert (repository, event_log) == (runs, events)


class TestMessages:
    @pytest.fixture
    def ten(self, log: EventLog) -> list[int]:
        author = Author(log)
        author.run("r1")
        author.run("r2")
        return [author.say("r1" if number % 2 else "r2", f"m{number}", number) for number in range(10)]

    def test_cursors_cut_by_seq_and_always_come_back_ascending(self, events: ProjectedEvents, ten: list[int]) -> None:
        def listed(**query: Any) -> list[int]:
            return seqs(events.list_messages_by_run(ListRunMessagesQuery(thread_id="t", **query)))

        assert listed() == ten
        assert listed(limit=3) == ten[-3:]
        assert listed(after_seq=ten[3], limit=3) == ten[4:7]
        assert listed(before_seq=ten[6], limit=3) == ten[3:6]
        assert listed(after_seq=ten[1], before_seq=ten[8], limit=3) == ten[2:5]
        assert listed(after_seq=ten[1], before_seq=ten[4]) == ten[2:4]
        assert listed(after_seq=ten[-1]) == []
        assert listed(before_seq=ten[0]) == []
        assert listed(limit=0) == []
        assert listed(run_id="r1") == ten[1::2]
        assert listed(run_id="r1", limit=2) == ten[-3::2]
        assert listed(run_id="r1", after_seq=0, limit=2) == ten[1:4:2]

    def test_an_edited_message_is_listed_once_where_it_was_edited(self, log: EventLog, events: ProjectedEvents) -> None:
        author = Author(log)
        author.run("r1")
        author.say("r1", "m", "first")
        other = author.say("r1", "other", "between")
        author.run("r2")
        edited = author.say("r2", "m", {"z": "\x00", "a": 1}, metadata={"k": "\x00"}, event_type="ai")

        both = events.list_messages_by_run(ListRunMessagesQuery(thread_id="t"))
        assert seqs(both) == [other, edited]
        assert list(both[1].content) == ["z", "a"]
        assert (both[1].content["z"], both[1].metadata, both[1].event_type) == ("\x00", {"k": "\x00"}, "ai")
        assert seqs(events.list_messages_by_run(ListRunMessagesQuery(thread_id="t", run_id="r1"))) == [other]
        assert seqs(events.list_messages_by_run(ListRunMessagesQuery(thread_id="t", run_id="r2"))) == [edited]

    def test_rolling_back_the_run_that_edited_it_brings_the_message_back(
        self, log: EventLog, events: ProjectedEvents
    ) -> None:
        author = Author(log)
        author.run("r1")
        first = author.say("r1", "m", "first")
        author.run("r2")
        author.say("r2", "m", "edited")
        author.write(author.fact(RunDeleted, "r2"))

        (message,) = events.list_messages_by_run(ListRunMessagesQuery(thread_id="t"))
        assert (message.seq, message.content) == (first, "first")

    def test_another_users_messages_are_not_listed(self, log: EventLog, events: ProjectedEvents) -> None:
        author = Author(log, user_id="ann")
        author.run("r", user_id="ann")
        author.say("r", "m")

        for run_id in (None, "r"):
            query = ListRunMessagesQuery(thread_id="t", run_id=run_id, user_id="bob")
            assert events.list_messages_by_run(query) == []
            query = ListRunMessagesQuery(thread_id="t", run_id=run_id, user_id="ann")
            assert len(events.list_messages_by_run(query)) == 1

    def test_a_client_reads_its_own_messages(self, events: ProjectedEvents) -> None:
        events.append([ThreadCreated(thread_id="t", occurred_at=now())])
        events.append([RunCreated(thread_id="t", run_id="r", occurred_at=now(), assistant_id="a")])
        for number in range(50):
            said = MessageRecorded(
                thread_id="t", run_id="r", occurred_at=now(), message_id=f"m{number}", content=number
            )
            (stored,) = events.append([said])
            listed = events.list_messages_by_run(ListRunMessagesQuery(thread_id="t", limit=1))
            assert listed.current
            assert (listed[0].seq, listed[0].content) == (stored.seq, number)


class TestAppend:
    def test_appended_facts_come_back_as_they_are_listed(self, events: ProjectedEvents) -> None:
        who = Provenance(actor="ann", reason="because", correlation_id="c", causation_id="d")
        facts: list[Fact] = [
            ThreadCreated(thread_id="t", occurred_at=now(), metadata={"z": 1}),
            RunCreated(thread_id="t", run_id="r", occurred_at=now(), assistant_id="a", kwargs={"z": "\x00"}),
            EventRecorded(thread_id="t", run_id="r", occurred_at=now(), event_type="tool", metadata={"k": 1}),
        ]

        stored = events.append(facts, who)

        assert stored == events.list_events_by_run("t", None)
        assert [each.event_type for each in stored] == ["thread.created", "run.created", "tool"]
        assert [each.category for each in stored] == ["lifecycle", "lifecycle", "trace"]
        assert stored[2].metadata == {
            "k": 1,
            "actor": "ann",
            "reason": "because",
            "correlation_id": "c",
            "causation_id": "d",
        }

    def test_facts_of_several_threads_are_refused(self, events: ProjectedEvents) -> None:
        facts = [ThreadCreated(thread_id=thread_id, occurred_at=now()) for thread_id in ("t", "u")]

        with pytest.raises(ValueError, match="one thread"):
            events.append(facts)
        assert events.append([]) == []

    def test_facts_of_what_is_not_there_are_refused(self, log: EventLog, events: ProjectedEvents) -> None:
        def noted(run_id: str) -> Fact:
            return EventRecorded(thread_id="t", run_id=run_id, occurred_at=now(), event_type="tool")

        with pytest.raises(ThreadNotFound):
            events.append([noted("r")])
        author = Author(log)
        author.run("r")
        with pytest.raises(RunNotFound):
            events.append([noted("unknown")])
        events.append([noted("r")])
        author.revision += 1
        author.write(author.fact(RunDeleted, "r"))
        with pytest.raises(RunNotFound):
            events.append([noted("r")])
        author.write(author.fact(ThreadDeleted))
        with pytest.raises(ThreadNotFound):
            events.append([noted("r")])


class TestEvents:
    @pytest.fixture
    def story(self, log: EventLog) -> Author:
        """Seqs: 1 thread, 2 run, 3 claimed, 4 started, 5-9 frames, 10 message, 11 trace, 12 completed."""
        author = Author(log)
        author.run("r")
        author.start("r", *[("values", {"n": n}) for n in range(3)], ("updates|child:1", [1]), ("error", {"e": "\x00"}))
        author.say("r", "m", {"z": 1, "a": "\x00"}, event_type="ai")
        author.write(author.fact(EventRecorded, "r", event_type="tool", kind=EventCategory.ERROR, content=[1]))
        author.write(author.fact(RunCompleted, "r"), by=Provenance(actor="worker"))
        return author

    def test_facts_and_frames_come_in_one_order(self, events: ProjectedEvents, story: Author) -> None:
        listed = events.list_events_by_run("t", None)

        assert listed.current
        assert seqs(listed) == list(range(1, 13))
        assert [each.event_type for each in listed[4:]] == [
            "values",
            "values",
            "values",
            "updates",
            "error",
            "ai",
            "tool",
            "run.completed",
        ]
        assert [each.category for each in listed[8:]] == ["stream", "message", "error", "lifecycle"]
        assert (listed[4].content, listed[7].metadata) == ({"n": 0}, {"event": "updates|child:1"})
        assert listed[8].content == {"e": "\x00"}
        assert list(listed[9].content) == ["z", "a"]
        assert (listed[0].run_id, listed[1].run_id, listed[11].metadata) == ("", "r", {"actor": "worker"})
        assert "claim_id" not in listed[2].content
        assert listed[1].content["assistant_id"] == "agent"
        assert all(each.created_at.endswith("+00:00") for each in listed)

    def test_cursors_split_a_page_that_lies_across_them(self, events: ProjectedEvents, story: Author) -> None:
        def listed(**query: Any) -> list[int]:
            return seqs(events.list_events_by_run("t", "r", **query))

        assert listed() == list(range(2, 13))
        assert listed(after_seq=6, limit=2) == [7, 8]
        assert listed(before_seq=7, limit=2) == [5, 6]
        assert listed(after_seq=5, before_seq=8) == [6, 7]
        assert listed(after_seq=5, before_seq=10, limit=2) == [6, 7]
        assert listed(limit=4) == [9, 10, 11, 12]
        assert listed(before_seq=12, limit=6) == [6, 7, 8, 9, 10, 11]
        assert listed(after_seq=12) == []
        assert listed(before_seq=2) == []

    def test_types_are_event_types_or_categories(self, events: ProjectedEvents, story: Author) -> None:
        def listed(*types: str, **query: Any) -> list[int]:
            return seqs(events.list_events_by_run("t", None, types=types, **query))

        assert listed() == []
        assert listed("stream") == [5, 6, 7, 8, 9]
        assert listed("values") == [5, 6, 7]
        assert listed("values", limit=1) == [7]
        assert listed("updates") == [8]
        assert listed("message") == [10]
        assert listed("error") == [9, 11]
        assert listed("lifecycle") == [1, 2, 3, 4, 12]
        assert listed("run.completed", "tool") == [11, 12]
        assert listed("lifecycle", after_seq=2, limit=2) == [3, 4]
        assert listed("nothing.like.it") == []

    def test_types_that_no_frame_has_leave_pages_unread(
        self, log: EventLog, events: ProjectedEvents, story: Author
    ) -> None:
        # A page that cannot be decoded would be noticed.
        with psycopg.connect(log.url) as connection:
            connection.execute("set local runs_es.maintenance = 'test'")
            connection.execute("update runs_es.events set state = '\\x00' where segment > 0")

        assert seqs(events.list_events_by_run("t", "r", types=["lifecycle", "message"])) == [2, 3, 4, 10, 12]

    def test_a_run_has_its_own_events_only(self, events: ProjectedEvents, story: Author) -> None:
        story.run("r2")
        story.start("r2", ("values", 1), ("values", 2))
        story.write(story.fact(RunCompleted, "r2"))
        story.write(story.fact(EventRecorded, "r", event_type="late"))

        assert seqs(events.list_events_by_run("t", "r")) == [*range(2, 13), 19]
        assert seqs(events.list_events_by_run("t", "r2")) == [13, 14, 15, 16, 17, 18]
        assert events.list_events_by_run("t", "unknown") == []

    def test_long_lists_are_read_in_chunks_both_ways(self, log: EventLog, events: ProjectedEvents) -> None:
        author = Author(log)
        author.run("r")
        author.start("r")
        for number in range(100):
            author.write(
                author.fact(EventRecorded, "r", event_type="tool", content=number),
                page=("r", [frame("values", b"%d" % index) for index in range(3)]),
            )
        everything = list(range(1, 405))

        for run_id, first in ((None, 1), ("r", 2)):
            assert seqs(events.list_events_by_run("t", run_id, limit=1000)) == everything[first - 1 :]
            assert seqs(events.list_events_by_run("t", run_id, after_seq=0, limit=1000)) == everything[first - 1 :]
            assert seqs(events.list_events_by_run("t", run_id, limit=350)) == everything[-350:]
            assert seqs(events.list_events_by_run("t", run_id, after_seq=7, limit=333)) == everything[7:340]
        assert len(events.list_events_by_run("t", "r", types=["tool"], limit=1000)) == 100

    def test_a_thread_created_again_does_not_show_what_was_before(self, events: ProjectedEvents, story: Author) -> None:
        story.write(story.fact(ThreadDeleted))
        assert events.list_events_by_run("t", None) == []

        again = story.write(story.fact(ThreadCreated))

        assert seqs(events.list_events_by_run("t", None)) == [again]
        assert events.list_events_by_run("t", "r") == []


class TestThreads:
    def test_a_thread_is_current_even_when_nobody_projects(self, log: EventLog) -> None:
        author = Author(log, metadata={"z": "\x00", "a": 1}, user_id="ann")
        threads = ProjectedThreads(log)
        author.run("r")
        assert threads.get("t").status == "busy"  # type: ignore[union-attr]
        author.start("r")
        author.write(author.fact(RunFailed, "r", error="no\x00", error_type="Boom"))

        thread = threads.get("t", "ann")
        assert thread is not None
        assert (thread.status, thread.error) == ("error", {"error": "Boom", "message": "no\x00"})
        assert list(thread.metadata.items()) == [("z", "\x00"), ("a", 1)]
        assert threads.get("t", "bob") is None
        assert threads.get("unknown") is None

    def test_a_thread_is_its_row_and_the_facts_after_it(self, log: EventLog) -> None:
        author = Author(log)
        threads = ProjectedThreads(log)
        with LiveProjector(log) as projector:
            author.run("r")
            assert projector.wait_for(log.reader.last_position(), 10)
        author.write(author.fact(ThreadUpdated, metadata={"after": "the row"}))

        thread = threads.get("t")
        assert thread is not None
        assert (thread.status, thread.metadata) == ("busy", {"after": "the row"})
        author.write(author.fact(ThreadDeleted))
        assert threads.get("t") is None
        author.write(author.fact(ThreadCreated))
        assert threads.get("t").status == "idle"  # type: ignore[union-attr]

    def test_searching_finds_by_id_metadata_status_and_user(self, log: EventLog, threads: ProjectedThreads) -> None:
        Author(log, "plain", metadata={"kind": "a", "nested": {"x": 1, "y": [1, 2]}}, user_id="ann")
        Author(log, "nul", metadata={"kind": "a\x00", "key\x00": 1}, user_id="u" * 5000)
        Author(log, "mark", metadata={"kind": "a\ufdd00"})
        Author(log, "busy", metadata={"kind": "b"}, user_id="bob\x00").run("r")

        def found(**query: Any) -> list[str]:
            listed = threads.search(sort_order="asc", **query)
            assert listed.current
            assert threads.count(**query) == len(listed)
            return [thread.thread_id for thread in listed]

        assert found() == ["plain", "nul", "mark", "busy"]
        assert found(ids=["busy", "plain", "unknown"]) == ["plain", "busy"]
        assert found(ids=[]) == []
        assert found(metadata={}) == ["plain", "nul", "mark", "busy"]
        assert found(metadata={"kind": "a"}) == ["plain"]
        assert found(metadata={"nested": {"y": [2]}}) == ["plain"]
        assert found(metadata={"kind": "a\x00"}) == ["nul"]
        assert found(metadata={"key\x00": 1}) == ["nul"]
        assert found(metadata={"kind": "a\ufdd00"}) == ["mark"]
        assert found(status="busy") == ["busy"]
        assert found(user_id="ann") == ["plain", "mark"]
        assert found(user_id="bob\x00") == ["mark", "busy"]
        assert found(user_id="u" * 5000) == ["nul", "mark"]
        assert found(user_id="u" * 4999) == ["mark"]
        assert found(status="busy", metadata={"kind": "a"}) == []

    def test_searching_sorts_and_pages(self, log: EventLog, threads: ProjectedThreads) -> None:
        authors = [Author(log, thread_id) for thread_id in ("b", "a", "c")]
        authors[1].run("r")
        authors[1].start("r")
        authors[1].write(authors[1].fact(RunCompleted, "r"))
        authors[0].write(authors[0].fact(ThreadUpdated))

        def found(**query: Any) -> str:
            return "".join(thread.thread_id for thread in threads.search(**query))

        assert found() == "cab"
        assert found(sort_order="asc") == "bac"
        assert found(sort_by="thread_id") == "cba"
        assert found(sort_by="updated_at") == "bac"
        assert found(sort_by="state_updated_at")[0] == "a"
        assert found(sort_by="status", sort_order="asc") == "bac"
        assert found(limit=1, offset=1) == "a"
        assert found(limit=0) == ""
        for wrong in ({"sort_by": "secret"}, {"sort_order": "sideways"}):
            with pytest.raises(ValueError, match="threads are sorted by"):
                threads.search(**wrong)  # type: ignore[arg-type]

    def test_threads_are_sorted_by_the_moment_whatever_the_offset(
        self, log: EventLog, threads: ProjectedThreads
    ) -> None:
        for thread_id, moment in (
            ("second", "2026-01-02T03:00:00+00:00"),
            ("first", "2026-01-02T04:00:00+02:00"),
            ("third", "2026-01-01T20:00:00-08:00"),
        ):
            fact = ThreadCreated(thread_id=thread_id, occurred_at=moment)
            log.append(thread_id, [fact], expected=0).result(30)

        listed = threads.search(sort_order="asc")

        assert [thread.thread_id for thread in listed] == ["first", "second", "third"]
        assert listed[0].created_at == "2026-01-02T04:00:00+02:00"

    def test_a_client_finds_its_own_thread_at_once(self, log: EventLog, threads: ProjectedThreads) -> None:
        for number in range(50):
            Author(log, f"t{number}")
            assert threads.search(limit=1)[0].thread_id == f"t{number}"
            assert threads.count() == number + 1

    def test_without_a_projector_a_search_says_that_it_is_not_current(self, log: EventLog) -> None:
        Author(log)
        threads = ProjectedThreads(log, wait=0.05)

        assert not threads.search().current
        assert not threads.count().current
