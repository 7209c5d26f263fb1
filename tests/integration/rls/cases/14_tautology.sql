-- SPDX-License-Identifier: GPL-3.0-or-later
-- captured column: recursion hides a wide-open policy; auto-repair must refuse / flag
create table public.wish(id int primary key, list_id int, user_id uuid);
alter table wish enable row level security;
create policy w on wish for select to authenticated using (exists(select 1 from wish w2 where w2.list_id = list_id and w2.user_id = auth.uid()));
