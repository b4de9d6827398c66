-- A run that was created with `webhook` has a row: what is owed, and what came of it. The row comes from the log, by
-- position, in the transaction that moves `webhooks` in `tracking` (runs_es/webhooks/deliveries.py).
create table webhooks (
  thread_id       text not null,
  run_id          text not null,
  url             text not null,
  host            text not null,
  state           text not null default 'waiting' check (state in ('waiting', 'pending', 'delivered', 'failed')),
  position        bigint not null,                -- of `run.created`
  attempts        int not null default 0,
  due_at          timestamptz,                    -- pending: when to send it; while it is being sent, when that is given up
  claim           uuid,                           -- of who sends it, or did last
  ended_at        timestamptz,                    -- of the run, as recorded
  last_attempt_at timestamptz,
  last_status     int,                            -- of the receiver's last answer
  last_error      text,
  delivered_at    timestamptz,
  primary key (thread_id, run_id)
) with (fillfactor = 50);
create index webhooks_due on webhooks (due_at) where state = 'pending';
create index webhooks_open on webhooks (state, ended_at) where state <> 'delivered';

-- No run before has one: the field was refused.
insert into tracking (name, version, position, built_at)
select 'webhooks', 1, coalesce(max(position), 0), clock_timestamp() from events_facts;
