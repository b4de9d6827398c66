-- Until when external workers are trusted without a word from them. Who may write is decided by the log alone: a lease
-- only says when somebody is to ask it. Written before the claim that it belongs to, so that no claim is without one.
create table leases (
  claim_id     text primary key,
  thread_id    text not null,
  run_id       text not null,
  worker_id    text not null,
  seconds      double precision not null,   -- what a word from its worker is good for
  ends_at      timestamptz not null,        -- -infinity: is being taken away, and cannot be renewed
  deadline     timestamptz,                 -- when the run's time is up
  idle_seconds double precision,            -- silence that ends the run
  active_at    timestamptz not null,        -- when its worker last wrote
  fence        bigint                       -- of the thread, when a sweep last looked at it
) with (fillfactor = 60);
