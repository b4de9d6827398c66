-- Crons: what runs again and again, and when next. A row follows from the facts of the cron's own thread of the log.

create table crons (
  thread_id        text not null primary key,   -- the cron's in the log, not the one its runs are on
  cron_id          text not null,
  assistant_id     text not null,
  run_thread_id    text,                        -- null: a new one for each run
  on_run_completed text,
  schedule         text not null,
  timezone         text,
  end_time         text,
  enabled          boolean not null,
  payload          json not null,
  metadata         json not null,
  user_id          text,
  created_at       text not null,
  updated_at       text not null,
  next_run_date    text,                        -- null: disabled, or over
  revision         bigint not null,             -- of the last fact applied; what a change of the cron states
  created_order    timestamptz not null,
  updated_order    timestamptz not null,
  end_order        timestamptz,
  next_order       timestamptz,
  searchable       jsonb not null
) with (fillfactor = 70);
create index crons_due on crons (next_order) where next_order is not null;
create index crons_created on crons (created_order);
create index crons_user on crons (left(user_id, 64));
