"""What runs and threads used, from the read model `usage`: tokens by model, and their cost where a price is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runs_es.log.event_log import EventLog
from runs_es.settings import Price
from runs_projections.freshness import Counted, TrackedTable, TrackingPoll, Waiter
from runs_projections.stored_text import original, storable
from runs_projections.usage import USAGE

_WAIT = 2.0
_MILLION = 1_000_000

# A message that another run records again with the same numbers was made once, by the run that recorded it first.
_BY_MODEL = """
select coalesce(model, ''), count(message_id), coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0),
       coalesce(sum(cache_read_tokens), 0), coalesce(sum(cache_write_tokens), 0), coalesce(sum(reasoning_tokens), 0)
  from (select distinct on (message_id, model, input_tokens, output_tokens) * from usage
         where thread_id = %(thread)s
         order by message_id, model, input_tokens, output_tokens, seq) u
 where %(run)s::text is null or run_id = %(run)s
 group by model order by model
"""


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """Tokens of one model; `model` is empty where no message says it. `cost` is None without a price."""

    model: str
    messages: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost: float | None


class ProjectedUsage:
    """Usage of a thread or run. Waits, bounded, until the read model shows what the caller may know of."""

    def __init__(
        self,
        log: EventLog,
        waiter: Waiter | None = None,
        *,
        wait: float = _WAIT,
        prices: Mapping[str, Price] | None = None,
    ) -> None:
        self._reader = log.reader
        self._table = TrackedTable(log.reader, USAGE, waiter or TrackingPoll(log.reader), wait)
        self._prices = dict(prices or {})

    def by_model(self, thread_id: str, run_id: str | None = None) -> tuple[list[ModelUsage], Counted]:
        """Usage by model, and how many messages it is of, which says how current it is."""
        parameters = {"thread": storable(thread_id), "run": None if run_id is None else storable(run_id)}
        counted = self._table.counted(
            self._reader.last_position(thread_id), "where t.thread_id = %(thread)s", parameters
        )
        with self._reader.connection() as connection:
            rows = connection.execute(_BY_MODEL, parameters).fetchall()
        return [self._priced(original(model), *map(int, numbers)) for model, *numbers in rows], counted

    def _priced(
        self, model: str, messages: int, inputs: int, outputs: int, read: int, written: int, reasoning: int
    ) -> ModelUsage:
        price = self._prices.get(model)
        cost = None if price is None else _cost(price, inputs, outputs, read, written)
        return ModelUsage(model, messages, inputs, outputs, read, written, reasoning, cost)


def _cost(price: Price, inputs: int, outputs: int, read: int, written: int) -> float:
    plain = max(inputs - read - written, 0)
    of_read = price.input if price.cache_read is None else price.cache_read
    of_written = price.input if price.cache_write is None else price.cache_write
    total = plain * price.input + read * of_read + written * of_written + outputs * price.output
    return round(total / _MILLION, 9)
