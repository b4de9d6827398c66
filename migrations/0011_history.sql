-- Which history of the store this is, and where it was written last: what tells a restored backup, or a standby that
-- lacks what its primary had acknowledged, from the log that clients have cursors of. One row.
create table history (
  only_row          boolean primary key default true check (only_row),
  epoch             int     not null default 0,      -- threads that are made now begin above epoch * 2^32
  is_raised         boolean not null default true,   -- false while `runs-es restored` has threads left to raise
  doubt             text,                            -- why nothing may be written until an operator has spoken
  token             uuid    not null default gen_random_uuid(),  -- another one: forget what was kept in memory
  system_identifier text,                            -- of the cluster; null: nobody has written yet, or it is not shown
  timeline          bigint,
  database_oid      bigint,
  heads_oid         bigint
);
insert into history default values;

-- `n` stays an int, so no table is rewritten: a row with n < 0 is wide. `thread.restored` covers -n * 2^32 numbers, the
-- first fact of a thread that was made after a restore covers all from 1 on. `not valid`, because what is stored has
-- passed the stricter rule: new rows are checked, and no table is read for it.
alter table events
  drop constraint events_check,
  drop constraint events_check3,
  add constraint events_covers check (
    n >= 1 and seq >= n and (segment > 0 or n = 1)
    or segment = 0 and n < 0 and (topic = 'thread.restored' or revision = 1)) not valid;
