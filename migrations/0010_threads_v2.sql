-- Version 2 of the read model `threads`: a run that is cancelled before it began leaves its thread as it was. Processes of
-- the release before go on with the table `threads`; the live driver, or `runs-es rebuild threads`, fills this one.
create table threads_v2 (
  thread_id        text not null primary key,
  status           text not null,
  metadata         json not null,
  user_id          text,
  created_at       text not null,
  updated_at       text not null,
  state_updated_at text,
  interrupts       json not null,
  error            json,
  active           json not null,
  ended_run        text,
  ended_status     text not null,
  created_seq      bigint not null,
  revision         bigint not null,
  position         bigint not null,
  created_order    timestamptz not null,
  updated_order    timestamptz not null,
  state_order      timestamptz,
  searchable       jsonb not null
) with (fillfactor = 80);
create index threads_v2_created on threads_v2 (created_order, thread_id);
create index threads_v2_updated on threads_v2 (updated_order, thread_id);
create index threads_v2_status on threads_v2 (status, created_order);
-- A user's id has no bound, an index entry has one.
create index threads_v2_user on threads_v2 (left(user_id, 64), created_order);
create index threads_v2_metadata on threads_v2 using gin (searchable jsonb_path_ops);
