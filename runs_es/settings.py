"""Every setting, its default and its meaning; read from `RUNS_ES_*`, and from nowhere else.

The table in README.md is checked against this class by a test.
"""

from __future__ import annotations

from base64 import b64decode
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal, Self

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1024 * 1024


QueueName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class Price(BaseModel):
    """What a million tokens of a model cost, in the currency of your choice; a cached one as any other if not said."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cache_read: float | None = Field(default=None, ge=0)
    cache_write: float | None = Field(default=None, ge=0)


class Settings(BaseSettings):
    """Settings of one process. Durations are seconds, sizes are bytes."""

    model_config = SettingsConfigDict(env_prefix="RUNS_ES_", env_ignore_empty=True, extra="ignore")

    database_url: str | None = Field(default=None, description="PostgreSQL URL; unset means the embedded server")
    data_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("runs-es")),
        description="folder of the embedded database",
    )
    db_schema: str = Field(
        default="runs_es",
        pattern=r"^[a-z_][a-z0-9_]{0,40}$",
        description="schema of the log; the queue and the checkpoints use <schema>_queue and <schema>_checkpoints",
    )
    read_pool_size: int = Field(
        default=8, ge=1, le=200, description="connections that read the log and the read models"
    )
    embedded_max_connections: int = Field(default=200, ge=20, description="max_connections of the embedded server")

    concurrency: int = Field(default=10, ge=1, le=1000, description="runs a worker executes at once")
    queues: dict[QueueName, list[str]] = Field(
        default={},
        description="queues beside `default` and the assistants (ids or graph names) that wait there (JSON)",
    )
    heartbeat_seconds: float = Field(default=2.0, gt=0, description="how often a worker says that it lives")
    lease_seconds: float = Field(default=10.0, gt=0, description="silence after which a worker counts as lost")
    sweep_seconds: float = Field(
        default=2.0, gt=0, description="how often lost workers and forgotten threads are looked for"
    )
    max_attempts: int = Field(
        default=3,
        ge=1,
        description="attempts of a run that may come to nothing (worker lost, error that may pass); it fails then",
    )
    retry_seconds: float = Field(
        default=1.0,
        gt=0,
        le=3600,
        description="pause after an error that may pass; doubled each time, up to half off at random",
    )
    retry_max_seconds: float = Field(default=60.0, gt=0, le=86400, description="longest such pause")
    append_wait_seconds: float = Field(
        default=2.0,
        ge=0.1,
        le=60,
        description="wait of a write for others' locks, after which one whose process froze is cut off",
    )
    cancel_grace_seconds: float = Field(default=5.0, ge=0, description="time an executor has to stop when cancelled")
    run_timeout_seconds: float | None = Field(
        default=None,
        gt=0,
        description="time a run may take, from its first start; `config.timeout_seconds` of a run wins",
    )
    run_idle_timeout_seconds: float | None = Field(
        default=None,
        gt=0,
        description="time a run may go without a frame or message; `config.idle_timeout_seconds` of a run wins",
    )
    drain_seconds: float = Field(default=5.0, ge=0, description="time that runs have to finish after SIGTERM")

    webhook_secret: SecretStr | None = Field(
        default=None,
        description="signs webhooks: `whsec_` and 24 to 64 bytes in base64; several with spaces between all sign",
    )
    webhook_attempts: int = Field(default=12, ge=1, le=100, description="attempts at a webhook before it is given up")
    webhook_backoff_seconds: float = Field(
        default=2.0,
        gt=0,
        description="before the second attempt; twice as long before each further one, an hour at most",
    )
    webhook_timeout_seconds: float = Field(
        default=10.0, gt=0, description="time that an attempt at a webhook may take in all"
    )
    webhook_concurrency: int = Field(default=8, ge=1, le=200, description="webhooks that a worker sends at once")
    webhook_response_bytes: int = Field(
        default=16384, ge=0, description="what is read of a receiver's answer, and thrown away"
    )
    webhook_allowed_networks: list[IPv4Network | IPv6Network] = Field(
        default=[], description="networks that are not public and that webhooks may go to all the same (JSON list)"
    )

    cron_catch_up_seconds: float = Field(
        default=60.0,
        ge=0,
        description="ticks of a cron that are late by no more than this all run, one after the other",
    )
    cron_missed: Literal["latest", "skip"] = Field(
        default="latest",
        description="of ticks missed for longer, because no server ran: run the `latest` one, or `skip` all",
    )
    cron_min_seconds: float = Field(default=10.0, ge=1, description="shortest time between two ticks of a cron")
    max_crons_per_user: int = Field(
        default=1000, ge=0, description="crons a user may have; all of them where there are no users"
    )

    stream_heartbeat_seconds: float = Field(default=5.0, gt=0, description="comment line on an idle stream")
    stream_end_event: bool = Field(default=True, description="send `end` as the last event of a stream")
    send_timeout_seconds: float = Field(
        default=30.0, gt=0, description="a reader that takes nothing for so long is cut off"
    )
    ring_bytes: int = Field(default=4 * MIB, ge=0, description="memory a hot thread may take for its newest frames")
    key_bytes: int = Field(
        default=64 * MIB,
        ge=0,
        description="pages kept in memory to compress later ones, and as much to read them; 0 stores all whole",
    )
    publish_buffer_bytes: int = Field(
        default=4 * MIB, ge=1024, description="uncommitted frames a run may hold before it waits"
    )
    max_frame_bytes: int = Field(default=16 * MIB, ge=1024, description="largest single frame or fact")
    max_joins: int = Field(default=5000, ge=1, description="open streams a process")
    max_joins_per_user: int = Field(default=1000, ge=1, description="open streams a user and process")

    keep_streams_days: float | None = Field(
        default=None, gt=0, description="days that streamed frames can be replayed; unset means for ever"
    )
    keep_streams_bytes: int | None = Field(
        default=None, gt=0, description="disk space of streamed frames, above which the oldest go; unset means no limit"
    )
    segment_hours: float = Field(default=24.0, gt=0, description="age at which a new segment of frames is begun")
    segment_bytes: int = Field(default=1024 * MIB, gt=0, description="size at which a new segment of frames is begun")

    max_body_bytes: int = Field(default=10 * MIB, ge=1024, description="largest request body")
    max_header_bytes: int = Field(default=8192, ge=256, description="largest single request header")
    list_wait_seconds: float = Field(
        default=2.0, ge=0, description="how long a list waits for its read model to catch up"
    )
    projections: str | None = Field(
        default=None, description="read models of your own, as `module:object`, separated by commas"
    )
    prices: dict[str, Price] = Field(
        default={},
        description="what a million tokens cost, by model, for `usage` (JSON; see projections/README.md)",
    )
    external_assistants: str | None = Field(
        default=None,
        description="assistants that external workers execute, separated by commas; beside those of the configuration",
    )
    worker_token: SecretStr | None = Field(
        default=None,
        description="what external workers send as `Authorization: Bearer …`; unset means that only this machine's may",
    )
    worker_max_lease_seconds: float = Field(
        default=3600.0, ge=1, description="longest lease an external worker may ask for"
    )
    worker_max_wait_seconds: float = Field(
        default=60.0, ge=0, description="longest wait of an external worker for a run"
    )
    worker_max_items: int = Field(
        default=1000, ge=1, description="events, messages and facts of an external worker's request, each"
    )
    user_header: str | None = Field(
        default=None, description="request header, set by a trusted proxy, that names the user; unset means one user"
    )
    cors_origins: list[str] = Field(default=["*"], description="origins that browsers may call from (JSON list)")

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
