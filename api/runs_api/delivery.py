"""How a run reaches its client: as a stream or as its result; for runs on threads and for stateless ones alike."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from starlette.responses import Response

from runs_api.caller import Caller
from runs_api.creation import NOT_FOUND
from runs_api.edge import Edge
from runs_api.errors import ApiError
from runs_api.joins import Seat
from runs_api.sse import EventStream
from runs_api.waiting import ResultWhenEnded
from runs_es.domain import DisconnectMode, FramesGone, RunDomainError, RunNotFound, ThreadNotFound
from runs_es.execution.omissions import is_omission
from runs_es.service.commands import CancelRunCommand, CreateRunCommand, GetRunQuery, JoinRunStreamCommand
from runs_es.service.views import RunSnapshot, RunStreamHandle
from runs_es.streams.cursor import End, Step, parse_cursor

logger = logging.getLogger(__name__)

# How often an idle stream looks by itself whether it missed anything. Heartbeats have a timer of their own (sse.py):
# they must come also while other runs of the thread keep the cursor busy, or a filter hides everything.
RECHECK_SECONDS = 60.0

# Answers who waits for a run that is deleted meanwhile, with status 200: the headers have been sent by then.
DELETED = {"__error__": {"error": "HTTPException", "message": "404: Run not found"}}


class Delivery:
    """Delivers runs to one caller."""

    def __init__(self, edge: Edge, caller: Caller) -> None:
        self._edge = edge
        self._caller = caller
        self._service = edge.store.service

    async def created(self, command: CreateRunCommand) -> RunSnapshot:
        """The run just recorded. Raises ApiError 404 when its thread is not there."""
        try:
            return await self._service.create_background(command)
        except ThreadNotFound:
            raise ApiError(404, NOT_FOUND) from None

    async def created_stream(self, command: CreateRunCommand, base: str) -> Response:
        """Create the run and stream it. `base` is where it is found: `/threads/…/runs/…`, or `/runs/…`."""
        seat = self._edge.joins.admit(self._caller.user_id)
        try:
            handle = await self._service.create_and_stream(command, heartbeat_interval=RECHECK_SECONDS)
        except ThreadNotFound:
            seat.release()
            raise ApiError(404, NOT_FOUND) from None
        except BaseException:
            seat.release()
            raise
        cancels = command.on_disconnect is DisconnectMode.CANCEL
        return self._stream(handle, handle.stream.steps(), seat, base, None, cancels)

    async def joined_stream(
        self,
        run_id: str,
        thread_id: str | None,
        last_event_id: str | None,
        *,
        modes: Sequence[str] | None,
        cancels: bool,
        stop: bool,
        base: str,
    ) -> Response:
        """Stream a run after an id. With `stop`, who has seen its end gets a 204."""
        after = parse_cursor(last_event_id)
        seat = self._edge.joins.admit(self._caller.user_id)
        try:
            handle = await self._service.join_stream(self._join(run_id, thread_id, last_event_id))
        except BaseException:
            seat.release()
            raise
        steps = handle.stream.steps()
        if stop and handle.stream.ended_at is not None and after >= handle.stream.ended_at:
            first = await anext(steps)
            if isinstance(first, End):
                handle.stream.release()
                seat.release()
                return Response(status_code=204)
            steps = _with_first(first, steps)
        return self._stream(handle, steps, seat, base, frozenset(modes) if modes else None, cancels)

    async def created_result(self, command: CreateRunCommand, location: str, content_location: str) -> Response:
        """Create the run and answer with its result."""
        seat = self._edge.joins.admit(self._caller.user_id)
        try:
            run = await self.created(command)
        except BaseException:
            seat.release()
            raise
        cancels = command.on_disconnect is DisconnectMode.CANCEL
        return self._result(run.thread_id, run.run_id, seat, location, content_location, cancels)

    async def joined_result(
        self, run_id: str, thread_id: str | None, *, cancels: bool, location: str, content_location: str
    ) -> Response:
        """Answer with the result of a run once it has ended. Raises RunNotFound."""
        seat = self._edge.joins.admit(self._caller.user_id)
        try:
            found = await self._service.join_stream(self._join(run_id, thread_id, None))
            found.stream.release()
        except BaseException:
            seat.release()
            raise
        return self._result(found.thread_id, found.run_id, seat, location, content_location, cancels)

    def cancelled_result(self, thread_id: str, run_id: str, location: str, content_location: str) -> Response:
        """Answer with the result of a run that the caller has just cancelled: it, or its thread, may be gone by now."""
        seat = self._edge.joins.admit(self._caller.user_id)
        return self._result(thread_id, run_id, seat, location, content_location, cancels=False)

    def _join(self, run_id: str, thread_id: str | None, last_event_id: str | None) -> JoinRunStreamCommand:
        return JoinRunStreamCommand(
            run_id=run_id,
            thread_id=thread_id,
            last_event_id=last_event_id,
            user_id=self._caller.user_id,
            heartbeat_interval=RECHECK_SECONDS,
        )

    def _stream(
        self,
        handle: RunStreamHandle,
        steps: AsyncIterator[Step],
        seat: Seat,
        base: str,
        modes: frozenset[str] | None,
        cancels: bool,
    ) -> Response:
        def close() -> None:
            handle.stream.release()  # for a stream that was never iterated
            seat.release()

        return EventStream(
            steps,
            self._edge.settings,
            headers={"Location": f"{base}/stream", "Content-Location": base},
            modes=modes,
            on_client_left=self._canceller(handle.thread_id, handle.run_id) if cancels else None,
            on_close=close,
            memory=self._edge.memory,
        )

    def _result(
        self, thread_id: str, run_id: str, seat: Seat, location: str, content_location: str, cancels: bool
    ) -> Response:
        return ResultWhenEnded(
            lambda: self.result(thread_id, run_id),
            self._edge.settings,
            headers={"Location": location, "Content-Location": content_location},
            on_client_left=self._canceller(thread_id, run_id) if cancels else None,
            on_close=seat.release,
        )

    async def result(self, thread_id: str, run_id: str) -> Any:
        """What the run came to. One that streamed no values has them from the thread's state, where there is one; one
        whose frames retention has deleted, or whose last values were too large for a frame, from the state that it
        ended in. A run that was deleted while it was waited for has the platform's error.
        """
        try:
            result = await self._service.result(thread_id, run_id)
        except RunNotFound:
            return DELETED
        except FramesGone as gone:
            left = await self._state_left(thread_id, run_id, of_run=True)
            message = f"{gone}; no state of the run is left either"
            return {"__error__": {"error": "FramesGone", "message": message}} if left is None else left
        if is_omission(result):
            left = await self._state_left(thread_id, run_id, of_run=True)
            return result if left is None else left
        if result != {}:
            return result
        left = await self._state_left(thread_id, run_id)
        return {} if left is None else left

    async def _state_left(self, thread_id: str, run_id: str, *, of_run: bool = False) -> Any:
        """The thread's newest values, or those that the run ended with; None where no such state is kept."""
        state = self._edge.store.state
        run = await self._service.get_run(GetRunQuery(run_id=run_id, thread_id=thread_id))
        graph_id = None if run is None else graph_of(run.kwargs)
        if state is None or run is None or graph_id is None or (of_run and run.checkpoint_id is None):
            return None
        values = await state.values(thread_id, graph_id, run.checkpoint_id if of_run else None)
        if run.interrupts and isinstance(values, dict):
            asked = [interrupt for interrupts in run.interrupts.values() for interrupt in interrupts]
            return {**values, "__interrupt__": asked}
        return values

    def _canceller(self, thread_id: str, run_id: str) -> Callable[[], Awaitable[None]]:
        """Cancels the run whose client left. A server that stops has cut its clients off itself."""

        async def cancel() -> None:
            if self._edge.store.streams.closing:
                return
            try:
                await self._service.cancel(
                    CancelRunCommand(
                        run_id=run_id,
                        thread_id=thread_id,
                        user_id=self._caller.user_id,
                        provenance=self._caller.because("the client disconnected (on_disconnect=cancel)"),
                    )
                )
            except RunNotFound:
                return  # it ended first
            except RunDomainError as error:
                logger.warning("run %s could not be cancelled for the client that left: %s", run_id, error)

        return cancel


def graph_of(kwargs: dict[str, Any]) -> str | None:
    """The graph that a recorded request names."""
    configurable = (kwargs.get("config") or {}).get("configurable") or {}
    graph_id = configurable.get("graph_id")
    return graph_id if isinstance(graph_id, str) else None


async def _with_first(first: Step, others: AsyncIterator[Step]) -> AsyncIterator[Step]:
    yield first
    async for step in others:
        yield step
