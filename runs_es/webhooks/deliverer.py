"""Sends what is owed: a thread and event loop of its own in every process that executes runs.

Any number of processes share the work. Each claims a row, has the length of a lease to send it and to say how that
went, and begins no attempt that could outlast its lease: so no two send one at the same time, unless one of them was
stopped in the middle and goes on too late. Every attempt carries the same `webhook-id`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeVar

from runs_es.database.reporting import report
from runs_es.domain import StoreUnavailable
from runs_es.log.append import Append, Appended
from runs_es.log.event_log import EventLog
from runs_es.settings import Settings
from runs_es.webhooks.addresses import AddressRefused
from runs_es.webhooks.deliveries import Deliveries, Delivery
from runs_es.webhooks.payload import EndedRun, StateLeft, ended_run
from runs_es.webhooks.post import Answer, Poster, Unreachable
from runs_es.webhooks.signature import Signer

logger = logging.getLogger(__name__)

T = TypeVar("T")
# Entered on the deliverer's loop: how to read the state of runs that streamed no values; None where none is kept.
OpenState: TypeAlias = Callable[[], AbstractAsyncContextManager[StateLeft | None]]

MAX_BACKOFF = 3600.0  # seconds
_LOOK_SECONDS = 1.0  # without any news: is an attempt due, or was a fact written by another process?
_PAUSE_SECONDS = 0.05  # between two looks at the log, while facts come all the time
_DATABASE_THREADS = 3
_GONE = 410
# The global generator belongs to the embedding program, which may seed it.
_jitter = random.Random()  # noqa: S311


class WebhookDeliverer:
    """Runs from `start` to `close`."""

    def __init__(self, log: EventLog, deliveries: Deliveries, settings: Settings, open_state: OpenState | None) -> None:
        self._log = log
        self._deliveries = deliveries
        self._settings = settings
        self._open_state: OpenState = open_state or (lambda: nullcontext(None))
        secret = settings.webhook_secret
        self._signer = Signer(secret.get_secret_value() if secret is not None else None)
        timeout = settings.webhook_timeout_seconds
        self._lease = timeout + max(timeout, 2.0)
        self._sending: dict[asyncio.Task[None], str] = {}
        self._state_left: StateLeft | None = None
        self._closing = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._threads = ThreadPoolExecutor(_DATABASE_THREADS, "runs-es webhooks")
        self._thread = threading.Thread(target=self._main, name="runs-es webhooks", daemon=True)

    def start(self) -> None:
        self._log.watch(on_commit=self._committed, on_poll=self._rouse)
        self._thread.start()

    def close(self) -> None:
        """Claim no more; attempts under way have their time, then they are left to another process."""
        self._closing.set()
        self._rouse()
        self._thread.join(self._settings.webhook_timeout_seconds + 5)
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- called in other threads ---

    def _committed(self, committed: Sequence[tuple[Append, Appended]]) -> None:
        if any(appended.position is not None for _, appended in committed):
            self._rouse()

    def _rouse(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # it has come to its end just now
                self._loop.call_soon_threadsafe(self._wake.set)

    # --- the loop ---

    def _main(self) -> None:
        while not self._closing.is_set():
            try:
                asyncio.run(self._run())
            except Exception as error:  # noqa: BLE001  (reported)
                report(logger, error, "webhooks: the deliverer stopped; starting it again")
                self._closing.wait(_LOOK_SECONDS)

    async def _run(self) -> None:
        self._loop, self._wake, self._sending = asyncio.get_running_loop(), asyncio.Event(), {}
        # For names to be looked up, which may take long and cannot be cancelled.
        self._loop.set_default_executor(ThreadPoolExecutor(2 * self._settings.webhook_concurrency, "runs-es names"))
        settings = self._settings
        poster = Poster(
            settings.webhook_allowed_networks, settings.webhook_timeout_seconds, settings.webhook_response_bytes
        )
        try:
            async with self._open_state() as self._state_left:
                while not self._closing.is_set():
                    more = await self._look(poster)
                    if not more:
                        with suppress(TimeoutError):
                            await asyncio.wait_for(self._wake.wait(), _LOOK_SECONDS)
                        await asyncio.sleep(_PAUSE_SECONDS)
                if self._sending:
                    await asyncio.wait(self._sending, timeout=settings.webhook_timeout_seconds)
        finally:
            await poster.close()

    async def _look(self, poster: Poster) -> bool:
        """Take over what the log has, and send what is due; whether there is more in the log."""
        self._wake.clear()
        more = False
        try:
            more = await self._blocking(self._deliveries.follow)
        except Exception as error:  # noqa: BLE001  (reported)
            report(logger, error, "webhooks: the log cannot be followed; no further webhook is sent until it can")
        try:
            while len(self._sending) < self._settings.webhook_concurrency and await self._send_next(poster):
                pass
        except Exception as error:  # noqa: BLE001  (reported)
            report(logger, error, "webhooks: none can be claimed; tries again")
        return more

    async def _send_next(self, poster: Poster) -> bool:
        """Begin to send, if anything is due; whether there was."""
        claimed = await self._claim()
        if claimed is None:
            return False
        task = asyncio.create_task(self._send_on(poster, claimed))
        self._sending[task] = claimed[0].host
        task.add_done_callback(self._sent)
        return True

    async def _claim(self) -> tuple[Delivery, float] | None:
        """A delivery, and the moment of the loop's clock after which it must not be begun."""
        claimed_at = asyncio.get_running_loop().time()
        delivery = await self._blocking(self._deliveries.claim, self._lease, self._busy_hosts())
        if delivery is None:
            return None
        return delivery, claimed_at + self._lease - self._settings.webhook_timeout_seconds

    async def _send_on(self, poster: Poster, claimed: tuple[Delivery, float] | None) -> None:
        """This one, and the next, until nothing is due."""
        task = asyncio.current_task()
        assert task is not None
        while claimed is not None:
            self._sending[task] = claimed[0].host
            await self._deliver(poster, *claimed)
            self._sending[task] = ""
            claimed = None if self._closing.is_set() else await self._claim()

    def _busy_hosts(self) -> list[str]:
        """Hosts that have half of all attempts under way: one slow receiver must not hold up the others."""
        most = max(self._settings.webhook_concurrency // 2, 1)
        return [host for host, count in Counter(filter(None, self._sending.values())).items() if count >= most]

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.pop(task, None)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            report(logger, error, "webhooks: an attempt failed here; it is made again when its lease is over")

    # --- one attempt ---

    async def _deliver(self, poster: Poster, delivery: Delivery, last_start: float) -> None:
        if delivery.attempts > self._settings.webhook_attempts:
            await self._give_up(delivery, "the process that made the last attempt was lost", None)
            return
        try:
            ended = await self._blocking(ended_run, self._log.reader, delivery.thread_id, delivery.run_id)
            moment = datetime.now(UTC)
            body = None if ended is None else ended.body(await self._values(ended), _iso(moment))
        except Exception as error:  # noqa: BLE001  (reported)
            report(logger, error, "webhook of run %s: the run cannot be read", delivery.run_id)
            await self._retry(delivery, f"the run cannot be read: {type(error).__name__}: {error}", None)
            return
        if body is None:
            await self._give_up(delivery, "the run is erased", None)
        elif asyncio.get_running_loop().time() <= last_start:  # else somebody may claim it before this one is done
            await self._post(poster, delivery, self._headers(delivery, moment, body), body)

    def _headers(self, delivery: Delivery, moment: datetime, body: bytes) -> dict[str, str]:
        signed = self._signer.headers(delivery.delivery_id, moment, body)
        return {"content-type": "application/json", "user-agent": "runs-es", **signed}

    async def _post(self, poster: Poster, delivery: Delivery, headers: dict[str, str], body: bytes) -> None:
        try:
            answer = await poster.post(delivery.url, headers, body)
        except AddressRefused as refused:
            await self._give_up(delivery, str(refused), None)
        except Unreachable as error:
            await self._retry(delivery, str(error), None)
        else:
            await self._answered(delivery, answer)

    async def _values(self, ended: EndedRun) -> Any:
        if ended.values is not None or ended.is_rolled_back or self._state_left is None:
            return ended.values
        return await self._state_left(ended.run)

    async def _answered(self, delivery: Delivery, answer: Answer) -> None:
        if 200 <= answer.status < 300:
            await self._noted(self._deliveries.note_delivered, delivery, answer.status)
        elif answer.status == _GONE:
            await self._give_up(delivery, "the receiver wants no more of it (410)", answer.status)
        else:
            await self._retry(delivery, f"the receiver answered {answer.status}", answer)

    async def _retry(self, delivery: Delivery, error: str, answer: Answer | None) -> None:
        status = answer.status if answer is not None else None
        if delivery.attempts >= self._settings.webhook_attempts:
            await self._give_up(delivery, error, status)
            return
        delay = backoff(self._settings.webhook_backoff_seconds, delivery.attempts)
        if answer is not None and answer.retry_after is not None:
            delay = max(delay, min(answer.retry_after, MAX_BACKOFF))
        logger.info("webhook of run %s: %s; again in %.1f s", delivery.run_id, error, delay)
        await self._noted(self._deliveries.note_failed, delivery, error, status, delay)
        asyncio.get_running_loop().call_later(delay, self._wake.set)

    async def _give_up(self, delivery: Delivery, error: str, status: int | None) -> None:
        logger.error(
            "webhook of run %s to %s is given up after %d attempts: %s; `runs-es webhooks retry` begins anew",
            *(delivery.run_id, delivery.host, delivery.attempts, error),
        )
        await self._noted(self._deliveries.note_failed, delivery, error, status, None)

    async def _noted(self, function: Callable[..., object], *arguments: object) -> None:
        """Write how it went, however long the database is away: what is not written is sent again."""
        while True:
            try:
                await self._blocking(function, *arguments)
                return
            except StoreUnavailable as error:
                report(logger, error, "webhooks: what came of one cannot be written yet")
                await asyncio.sleep(_LOOK_SECONDS)

    async def _blocking(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds")


def backoff(first: float, attempts: int) -> float:
    """Seconds to wait after so many attempts, half of it by chance: who failed together does not come back together."""
    longest = min(first * 2.0 ** min(attempts - 1, 64), MAX_BACKOFF)
    return longest * _jitter.uniform(0.5, 1.0)
