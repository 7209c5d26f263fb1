-- SPDX-License-Identifier: GPL-3.0-or-later
-- works unwrapped; breaks once auth.uid() is wrapped (pseudo-recursion caused by the performance lint's own fix)
create table public.staff(id int primary key, user_id uuid, role text);
alter table staff enable row level security;
create policy s on staff for select to authenticated using (user_id = (select auth.uid()));
create policy u on staff for update to authenticated using (exists(select 1 from staff x where x.user_id = (select auth.uid()) and x.role = 'boss'));
