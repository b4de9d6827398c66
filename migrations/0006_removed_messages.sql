-- Messages that left the list of their thread: a version without content, newer than all that it hides.

alter table messages add column removed boolean not null default false;
