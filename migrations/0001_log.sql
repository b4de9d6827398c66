-- The log. One row of `heads` a thread is the only hot lock; `events` holds facts (segment 0) and pages (segment >= 1).
-- DESIGN.md 1 and 2 say why each column is here. Names are unqualified: the runner sets search_path.

create sequence event_position cache 1;  -- more than 1 would break "position order = commit order"

create table heads (
  thread_id text primary key,
  head      bigint not null,                               -- last seq
  revision  bigint not null check (revision > 0),          -- facts
  fence     bigint not null default 0,                     -- raised by facts that change who may write
  frames    bigint not null default 0,                     -- frames ever appended
  at        timestamptz not null default clock_timestamp(),
  chain     bytea
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

create table events (
  thread_id      text not null,
  seq            bigint not null,       -- last seq that the row covers; a page covers seq - n + 1 .. seq
  segment        int not null,          -- 0 = facts, never dropped; >= 1 = pages
  n              int not null,
  run_id         text,
  topic          text not null,
  state          bytea not null,
  revision       bigint,                -- facts: 1, 2, 3 … in the thread
  position       bigint,                -- facts: commit order in the whole store
  first_frame    bigint,                -- pages: frames of the thread before this page
  page_segment   int,                   -- facts: the segment that pages went to; bounds a run's page reads
  actor          text,
  reason         text,
  correlation_id text,
  causation_id   text,
  idem_key       text,
  link           bytea,                 -- hash chain, on the last row of a request
  recorded_at    timestamptz not null,
  primary key (thread_id, seq, segment),
  check (n >= 1 and seq >= n),
  check ((segment = 0) = (position is not null)),
  check ((segment = 0) = (revision is not null)),
  check (segment > 0 or n = 1),
  check (segment = 0 or (first_frame is not null and run_id is not null))
) partition by list (segment);

-- Pages are compressed by the application where at all: 'extended' cost 20 % of the append speed.
alter table events alter column state set storage external;

create table events_facts partition of events for values in (0);
create unique index events_facts_position on events_facts (position);
create unique index events_facts_revision on events_facts (thread_id, revision);
create unique index events_facts_idem_key on events_facts (thread_id, idem_key) where idem_key is not null;
create index events_facts_run on events_facts (thread_id, run_id, seq);
create index events_facts_run_created on events_facts (run_id) where topic = 'run.created';

create table events_p1 partition of events for values in (1) with (toast_tuple_target = 8160);

create table segments (
  segment    int primary key check (segment >= 1),
  created_at timestamptz not null default clock_timestamp()
);
insert into segments (segment) values (1);

-- Guards against accidents: stored events do not change and do not vanish, unless a retention or erasure transaction
-- says so in the setting `runs_es.maintenance`. Against malice, let another role own these tables.
create function refuse_change() returns trigger language plpgsql as $$
begin
  if coalesce(current_setting('runs_es.maintenance', true), '') = '' then
    raise exception '% on %.% is refused: the log is append-only', tg_op, tg_table_schema, tg_table_name
      using errcode = 'insufficient_privilege',
            hint = 'Retention and erasure set runs_es.maintenance in their own transaction.';
  end if;
  return case when tg_level = 'STATEMENT' then null when tg_op = 'DELETE' then old else new end;
end $$;

create trigger events_unchanged before update or delete on events for each row execute function refuse_change();
create trigger events_facts_kept before truncate on events_facts for each statement execute function refuse_change();
create trigger events_p1_kept before truncate on events_p1 for each statement execute function refuse_change();
create trigger heads_kept before delete on heads for each row execute function refuse_change();
create trigger heads_not_emptied before truncate on heads for each statement execute function refuse_change();
alter table events enable always trigger events_unchanged;
alter table events_facts enable always trigger events_unchanged;
alter table events_facts enable always trigger events_facts_kept;
alter table events_p1 enable always trigger events_unchanged;
alter table events_p1 enable always trigger events_p1_kept;
alter table heads enable always trigger heads_kept;
alter table heads enable always trigger heads_not_emptied;
