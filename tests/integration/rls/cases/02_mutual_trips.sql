-- SPDX-License-Identifier: GPL-3.0-or-later
-- mutual A<->B
create table public.group_trips(id int primary key, created_by uuid, title text, is_public boolean default false);
create table public.group_trip_participants(id uuid primary key default gen_random_uuid(), trip_id int not null, user_id uuid not null, role text not null default 'member');
alter table group_trips enable row level security; alter table group_trip_participants enable row level security;
create policy trips_select on group_trips for select using (created_by = auth.uid() or is_public or exists (select 1 from group_trip_participants p where p.trip_id = group_trips.id and p.user_id = auth.uid()));
create policy trips_write on group_trips for all to authenticated using (created_by = auth.uid()) with check (created_by = auth.uid());
create policy part_select on group_trip_participants for select using (user_id = auth.uid() or exists (select 1 from group_trips t where t.id = group_trip_participants.trip_id and t.created_by = auth.uid()));
create policy part_insert on group_trip_participants for insert to authenticated with check (exists (select 1 from group_trips t where t.id = trip_id and (t.created_by = auth.uid() or t.is_public)));
