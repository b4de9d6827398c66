-- Read models: what lists are read from. Every row here follows from the log and can be thrown away (`runs-es rebuild`).
-- Texts that may hold any character are stored as runs_projections/stored_text.py says; `json` columns hold JSON as it
-- was recorded, in the order of its keys, which `jsonb` would not keep.

-- How far each projection has come. A batch moves its position in the same transaction as the rows.
create table tracking (
  name     text not null,
  version  int not null,
  position bigint not null,
  primary key (name, version)
) with (fillfactor = 50);

create table runs (
  thread_id          text not null,
  run_id             text not null,
  assistant_id       text not null,
  status             text not null,
  scope              text not null,
  multitask_strategy text not null,
  metadata           json not null,
  kwargs             json not null,
  created_at         text not null,
  updated_at         text not null,
  error              text,
  error_type         text,
  model_name         text,
  user_id            text,
  attempt            int not null,
  interrupts         json not null,
  checkpoint_id      text,
  due_at             text,
  created_seq        bigint not null,
  last_seq           bigint not null,
  position           bigint not null,
  primary key (thread_id, run_id)
) with (fillfactor = 80);
create index runs_newest on runs (thread_id, created_seq);
create index runs_active on runs (thread_id) where status in ('pending', 'running');

create table messages (
  thread_id  text not null,
  run_id     text not null,
  message_id text not null,
  seq        bigint not null,        -- of the newest version; the cursor of lists
  first_seq  bigint not null,
  event_type text not null,
  content    json not null,
  metadata   json not null,
  created_at text not null
);
create unique index messages_key on messages (thread_id, message_id, md5(run_id));
create index messages_thread on messages (thread_id, seq);
create index messages_run on messages (thread_id, run_id, seq);

create table threads (
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
create index threads_created on threads (created_order, thread_id);
create index threads_updated on threads (updated_order, thread_id);
create index threads_status on threads (status, created_order);
-- A user's id has no bound, an index entry has one.
create index threads_user on threads (left(user_id, 64), created_order);
create index threads_metadata on threads using gin (searchable jsonb_path_ops);
