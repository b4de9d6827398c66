-- What a run found of writes on a checkpoint of an earlier run before it added its own, as resuming does: put back when
-- the run is rolled back. A thread has entries of one run at most, of the one that did so last.
create table checkpoint_undo (
  thread_id     text not null,
  run_id        text not null,
  checkpoint_ns text not null,
  checkpoint_id text not null,
  writes        jsonb not null,   -- rows of checkpoint_writes
  primary key (thread_id, run_id, checkpoint_ns, checkpoint_id)
);
