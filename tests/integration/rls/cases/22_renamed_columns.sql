-- SPDX-License-Identifier: GPL-3.0-or-later
-- the sub-select gives the table's columns other names
create table public.members(id int primary key, trip int, user_id uuid);
alter table members enable row level security;
create policy p on members for select using (exists (select from members as m(a, b, c) where m.c = auth.uid() and m.b = members.trip));
create policy q on members for delete using (auth.uid() in (select c from members as m(a, b, c) where b = members.trip) or trip between 1 and 2);
