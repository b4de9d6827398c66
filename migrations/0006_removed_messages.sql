-- Messages that lists leave out: those that left their thread, as a version without content that is newer than all that
-- it hides, and those that are marked as not for everybody (runs_projections/visibility.py).

alter table messages add column removed boolean not null default false,
                     add column hidden boolean not null default false;
update messages set hidden = true
 where (metadata::text like '%"hidden"%' and searchable(metadata)->'hidden' = 'true'::jsonb)
    or (content::text like '%"hide_from_ui"%'
        and searchable(content)->'additional_kwargs'->'hide_from_ui' = 'true'::jsonb);
create index messages_hidden on messages (thread_id, seq) where hidden;
