-- What operators see of projections and decide about them, the read model `usage`, and where rebuilds stand.

-- Where a projection stopped, as the process that led it saw it; cleared when one gets past. `retries` goes up when an
-- operator wants the fact tried again, or passed over (who and why is a fact in the log).
alter table tracking
  add column failed_position bigint,
  add column failed_reason   text,
  add column failed_at       timestamptz,
  add column retries         int not null default 0,
  add column built_at        timestamptz;   -- when it first reached the end of the log; no list is read before
update tracking set built_at = clock_timestamp();

-- What each run's newest version of each message says it used. A version without usage has no row.
create table usage (
  thread_id         text not null,
  run_id            text not null,
  message_id        text not null,
  seq               bigint not null,
  model             text not null,
  input_tokens      bigint not null,
  output_tokens     bigint not null,
  cache_read_tokens bigint not null,
  cache_write_tokens bigint not null,
  reasoning_tokens  bigint not null
);
create unique index usage_key on usage (thread_id, message_id, md5(run_id));
create index usage_run on usage (thread_id, run_id, seq);

-- Tables that are being made beside the live ones (in the schema <schema>_rebuild), and those that they replaced
-- (in <schema>_retired), until these are dropped.
create table rebuilds (
  name       text not null,
  version    int not null,
  table_name text not null,
  phase      text not null check (phase in ('filling', 'catching up', 'done')),
  target     bigint not null,             -- filling: the last position that is taken thread by thread
  thread_id  text not null default '',    -- filling: threads up to this one are done
  position   bigint not null default 0,   -- catching up: facts up to here are in
  facts      bigint not null default 0,   -- facts read so far
  begun_at   timestamptz not null default clock_timestamp(),
  drop_at    timestamptz,                 -- done: when the table that was replaced may go
  primary key (name, version)
);
