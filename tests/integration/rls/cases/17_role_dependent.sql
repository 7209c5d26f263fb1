-- SPDX-License-Identifier: GPL-3.0-or-later
-- anon works today through the same policy that recurses for authenticated: the cut must not change what anon sees
create table public.trips(id int primary key, owner uuid, is_public boolean default false);
create table public.parts(id int primary key, trip_id int, user_id uuid);
alter table trips enable row level security; alter table parts enable row level security;
create policy t_anon on trips for select to anon using (is_public);
create policy t_auth on trips for select to authenticated using (exists(select 1 from parts p where p.trip_id = trips.id and p.user_id = auth.uid()));
create policy p_all on parts for select using (exists(select 1 from trips t where t.id = parts.trip_id));
