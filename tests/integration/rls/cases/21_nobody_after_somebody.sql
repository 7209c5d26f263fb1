-- SPDX-License-Identifier: GPL-3.0-or-later
-- Found by the fuzz (seed 870005): one role fails, another one's access works and asks whether there is a user at all. The strict reading
-- of the first is evaluated as a user, whom the second comparison as nobody must not inherit.
create table public.people(id int primary key, owner uuid, ref int, flag boolean);
alter table people enable row level security;
create policy "select 0" on people for select to anon using (id = any (array(select s.ref from people s where auth.role() = 'authenticated')));
create policy "all 1" on people for all to authenticated using (auth.uid() is not null and flag);
