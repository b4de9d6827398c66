-- What lists of messages by type and of runs across threads are found by.

create index messages_types on messages (thread_id, event_type, seq);

-- A recorded time carries its own offset (runs_es/domain/values.py), so it is the same moment in every session, which
-- the cast alone cannot promise: only an immutable expression can be indexed.
create function moment(value text) returns timestamptz language plpgsql immutable strict parallel safe as $$
begin
  return value::timestamptz;
end $$;

-- Recorded JSON as `jsonb`, which takes no NUL: as runs_projections/stored_text.py writes one.
create function searchable(value json) returns jsonb language plpgsql immutable strict parallel safe as $$
declare
  mark constant text := chr(64976);
  told text := value::text;
begin
  if strpos(told, mark) > 0 then
    told := replace(told, mark, mark || '1');
  end if;
  if strpos(told, '\u0000') > 0 then
    told := regexp_replace(told, '(?<!\\)((?:\\\\)*)\\u0000', '\1' || mark || '0', 'g');
  end if;
  return told::jsonb;
end $$;

create index runs_created on runs (moment(created_at));
create index runs_status on runs (status, moment(created_at));
-- A user's id has no bound, an index entry has one.
create index runs_user on runs (left(user_id, 64), moment(created_at));
create index runs_metadata on runs using gin (searchable(metadata) jsonb_path_ops);
