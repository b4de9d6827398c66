"""Every setting, its default and its meaning; read from `RUNS_ES_*`, and from nowhere else. Unknown ones are refused.

The table in README.md is checked against this class by a test.
"""

from __future__ import annotations

import os
import re
import shlex
from base64 import b64decode
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import platformdirs
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from runs_es.environment import unknown_variables

MIB = 1024 * 1024
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#A-Z]+", re.ASCII)


QueueName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(lambda given: given.upper() if isinstance(given, str) else given),
]


class Price(BaseModel):
    """What a million tokens of a model cost, in the currency of your choice; a cached one as any other if not said."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cache_read: float | None = Field(None, ge=0)
    cache_write: float | None = Field(None, ge=0)


PREFIX = "RUNS_ES_"


class Settings(BaseSettings):
    """Settings of one process. Durations are seconds, sizes are bytes."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid")

    database_url: str | None = Field(
        None,
        description="PostgreSQL URL; unset means the embedded server",
        examples=["postgresql://runs_es@db.example.org/runs_es"],
    )
    data_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("runs-es")),
        description="folder of the embedded database",
        examples=["/var/lib/runs-es"],
    )
    db_schema: str = Field(
        "runs_es",
        pattern=r"^[a-z_][a-z0-9_]{0,40}$",
        description="schema of the log; the queue and the checkpoints use <schema>_queue and <schema>_checkpoints",
    )
    read_pool_size: int = Field(8, ge=1, le=200, description="connections that read the log and the read models")
    embedded_max_connections: int = Field(200, ge=20, description="max_connections of the embedded server")

    concurrency: int = Field(10, ge=1, le=1000, description="runs a worker executes at once")
    graph_open_seconds: float = Field(
        30.0, gt=0, description="time a function that makes a graph has when the graph is only looked at"
    )
    queues: dict[QueueName, list[str]] = Field(
        {},
        description="queues beside `default` and the assistants (ids or graph names) that wait there (JSON)",
        examples=['{"gpu": ["painter"]}'],
    )
    heartbeat_seconds: float = Field(2.0, gt=0, description="how often a worker says that it lives")
    lease_seconds: float = Field(10.0, gt=0, description="silence after which a worker counts as lost")
    sweep_seconds: float = Field(2.0, gt=0, description="how often lost workers and forgotten threads are looked for")
    max_attempts: int = Field(
        3,
        ge=1,
        description="attempts of a run that may come to nothing (worker lost, error that may pass); it fails then",
    )
    retry_seconds: float = Field(
        1.0,
        gt=0,
        le=3600,
        description="pause after an error that may pass; doubled each time, up to half off at random",
    )
    retry_max_seconds: float = Field(60.0, gt=0, le=86400, description="longest such pause")
    append_wait_seconds: float = Field(
        2.0,
        ge=0.1,
        le=60,
        description="wait of a write for others' locks, after which one whose process froze is cut off",
    )
    cancel_grace_seconds: float = Field(5.0, ge=0, description="time an executor has to stop when cancelled")
    blocked_loop_seconds: float = Field(
        1.0, gt=0, description="time an agent may block the event loop of all agents before the log names it"
    )
    run_timeout_seconds: float | None = Field(
        None,
        gt=0,
        description="time a run may take, from its first start; `config.timeout_seconds` of a run wins",
        examples=["600"],
    )
    run_idle_timeout_seconds: float | None = Field(
        None,
        gt=0,
        description="time a run may go without a frame or message; `config.idle_timeout_seconds` of a run wins",
        examples=["60"],
    )
    drain_seconds: float = Field(5.0, ge=0, description="time that runs have to finish after SIGTERM")

    webhook_secret: SecretStr | None = Field(
        None,
        description="signs webhooks: `whsec_` and 24 to 64 bytes in base64; several with spaces between all sign",
        examples=["whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="],
    )
    webhook_attempts: int = Field(12, ge=1, le=100, description="attempts at a webhook before it is given up")
    webhook_backoff_seconds: float = Field(
        2.0, gt=0, description="before the second attempt; twice as long before each further one, an hour at most"
    )
    webhook_timeout_seconds: float = Field(10.0, gt=0, description="time that an attempt at a webhook may take in all")
    webhook_concurrency: int = Field(8, ge=1, le=200, description="webhooks that a worker sends at once")
    webhook_response_bytes: int = Field(16384, ge=0, description="what is read of a receiver's answer, and thrown away")
    webhook_allowed_networks: list[IPv4Network | IPv6Network] = Field(
        [],
        description="networks that are not public and that webhooks may go to all the same (JSON list)",
        examples=['["10.20.0.0/16"]'],
    )

    cron_catch_up_seconds: float = Field(
        60.0, ge=0, description="ticks of a cron that are late by no more than this all run, one after the other"
    )
    cron_missed: Literal["latest", "skip"] = Field(
        "latest", description="of ticks missed for longer, because no server ran: run the `latest` one, or `skip` all"
    )
    cron_min_seconds: float = Field(10.0, ge=1, description="shortest time between two ticks of a cron")
    max_crons_per_user: int = Field(
        1000, ge=0, description="crons a user may have; all of them where there are no users"
    )

    stream_heartbeat_seconds: float = Field(5.0, gt=0, description="comment line on an idle stream")
    stream_end_event: bool = Field(True, description="send `end` as the last event of a stream")
    send_timeout_seconds: float = Field(30.0, gt=0, description="a reader that takes nothing for so long is cut off")
    reader_bytes: int = Field(
        64 * MIB, ge=MIB, description="bytes that wait for slow readers, over all streams of a process"
    )
    ring_bytes: int = Field(4 * MIB, ge=0, description="memory a hot thread may take for its newest frames")
    key_bytes: int = Field(
        64 * MIB,
        ge=0,
        description="pages kept in memory to compress later ones, and as much to read them; 0 stores all whole",
    )
    publish_buffer_bytes: int = Field(4 * MIB, ge=1024, description="uncommitted frames a run may hold before it waits")
    max_frame_bytes: int = Field(16 * MIB, ge=1024, description="largest single frame or fact")
    max_joins: int = Field(5000, ge=1, description="open streams a process")
    max_joins_per_user: int = Field(1000, ge=1, description="open streams a user and process")

    keep_streams_days: float | None = Field(
        None, gt=0, description="days that streamed frames can be replayed; unset means for ever", examples=["30"]
    )
    keep_streams_bytes: int | None = Field(
        None,
        gt=0,
        description="disk space of streamed frames, above which the oldest go; unset means no limit",
        examples=["10737418240"],
    )
    segment_hours: float = Field(24.0, gt=0, description="age at which a new segment of frames is begun")
    segment_bytes: int = Field(1024 * MIB, gt=0, description="size at which a new segment of frames is begun")

    max_body_bytes: int = Field(10 * MIB, ge=1024, description="largest request body")
    max_body_depth: int = Field(200, ge=2, le=250, description="levels of arrays and objects in a request body")
    max_body_elements: int = Field(
        250_000, ge=100, description="items and members in a request body, arrays and objects among them"
    )
    max_bodies_bytes: int = Field(
        256 * MIB, ge=1024, description="request bodies that a process holds at once, until it begins to answer"
    )
    max_header_bytes: int = Field(8192, ge=256, description="largest single request header")
    header_timeout_seconds: float = Field(
        10.0, gt=0, description="time that the headers of a request may take, from the connection or its first byte"
    )
    body_timeout_seconds: float = Field(
        30.0, gt=0, description="time that the body of a request may take, and a second more for each 32 KiB of it"
    )
    list_kwargs_bytes: int = Field(
        64 * 1024,
        ge=1024,
        description="`kwargs` of a run that are larger are left out of lists; the run itself has them",
    )
    list_wait_seconds: float = Field(2.0, ge=0, description="how long a list waits for its read model to catch up")
    projections: str | None = Field(
        None,
        description="read models of your own, as `module:object`, separated by commas",
        examples=["my_package.models:wins"],
    )
    prices: dict[str, Price] = Field(
        {},
        description="what a million tokens cost, by model, for `usage` (JSON; see projections/README.md)",
        examples=['{"model-1": {"input": 2.5, "output": 10}}'],
    )
    external_assistants: str | None = Field(
        None,
        description="assistants that external workers execute, separated by commas; beside those of the configuration",
        examples=["painter,writer"],
    )
    worker_token: SecretStr | None = Field(
        None,
        description="what external workers send as `Authorization: Bearer …`;"
        " unset: only this machine's may, and none where there are users",
        examples=["a-long-random-word"],
    )
    worker_max_lease_seconds: float = Field(3600.0, ge=1, description="longest lease an external worker may ask for")
    worker_max_wait_seconds: float = Field(60.0, ge=0, description="longest wait of an external worker for a run")
    worker_max_items: int = Field(
        1000, ge=1, description="events, messages and facts of an external worker's request, each"
    )
    show_errors: Literal["auto", "always", "never"] = Field(
        "auto",
        description="whether clients see the text of an agent's error; `auto`: from a server bound to loopback only",
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="lines of the log: `text` for a terminal, or `json`"
    )
    log_level: LogLevel = Field("WARNING", description="what is logged; `--log-level` wins")
    log_levels: dict[str, LogLevel] = Field(
        {}, description="levels of single loggers, by name (JSON)", examples=['{"procrastinate": "INFO"}']
    )
    user_header: str | None = Field(
        None,
        description="request header, set by a trusted proxy, that names the user; unset means one user",
        examples=["X-User"],
    )
    cors_origins: list[str] = Field(
        [],
        description="origins that browsers may call from, beside the server's own and those of localhost (JSON list);"
        ' `["*"]` opens it to every page',
        examples=['["https://app.example.org"]'],
    )
    allowed_hosts: list[str] = Field(
        [],
        description="names in `Host` beside localhost that the server answers to (JSON list); unset: any, but on a"
        " loopback address localhost alone",
    )

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_misspelt(cls, given: Any) -> Any:
        if unknown := unknown_variables(os.environ, cls.model_fields):
            raise ValueError("; ".join(unknown))
        return given

    @field_validator("webhook_secret")
    @classmethod
    def _can_sign(cls, given: SecretStr | None) -> SecretStr | None:
        for secret in given.get_secret_value().split() if given is not None else ():
            try:
                sized = 24 <= len(b64decode(secret.removeprefix("whsec_"), validate=True)) <= 64
            except ValueError:
                sized = False
            if not sized:
                raise ValueError("each secret must be 24 to 64 bytes in base64, with or without `whsec_` before it")
        return given

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, given: list[str]) -> list[str]:
        for origin in given:
            if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin: scheme, name and port alone, as in 'https://app.example'")
        return given

    @property
    def external_names(self) -> list[str]:
        """`external_assistants`, one by one."""
        return [name.strip() for name in (self.external_assistants or "").split(",") if name.strip()]

    @model_validator(mode="after")
    def _each_assistant_has_one_queue(self) -> Self:
        if "default" in self.queues:
            raise ValueError("RUNS_ES_QUEUES: `default` holds all assistants that no other queue names")
        named = [assistant for assistants in self.queues.values() for assistant in assistants]
        twice = sorted({assistant for assistant in named if named.count(assistant) > 1})
        if twice:
            raise ValueError(f"RUNS_ES_QUEUES: {', '.join(twice)} can wait in one queue only")
        return self

    @model_validator(mode="after")
    def _heartbeats_fit_into_the_lease(self) -> Self:
        if self.lease_seconds < 2 * self.heartbeat_seconds:
            raise ValueError(
                f"RUNS_ES_LEASE_SECONDS ({self.lease_seconds:g}) must be at least twice RUNS_ES_HEARTBEAT_SECONDS"
                f" ({self.heartbeat_seconds:g}), or healthy workers count as lost"
            )
        return self


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return f"{PREFIX}{name.upper()}"


def example_of(name: str) -> str:
    """A setting as a shell takes it: `RUNS_ES_NAME=value`, with the default where that says enough."""
    field = Settings.model_fields[name]
    value = str(field.examples[0] if field.examples else field.default)
    return f"{variable_of(name)}={shlex.quote(value)}"
