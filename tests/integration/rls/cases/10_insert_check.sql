-- SPDX-License-Identifier: GPL-3.0-or-later
-- recursion only on INSERT (pseudo-recursion: SELECT policy has a harmless sub-select)
create table public.rooms(id int primary key, host uuid, open boolean default true);
create table public.bans(user_id uuid primary key, reason text);
alter table rooms enable row level security; alter table bans enable row level security;
create policy b on bans for select using (user_id = auth.uid());
create policy r on rooms for select to authenticated using (open and not exists(select 1 from bans b where b.user_id = auth.uid()));
create policy i on rooms for insert to authenticated with check (host = auth.uid() and (select count(*) from rooms x where x.host = auth.uid()) < 3);
