-- SPDX-License-Identifier: GPL-3.0-or-later
-- the second attempt: the participants' policies are simple now, but they read the trips, whose policy still reads the participants
create table public.group_trips(id uuid primary key default gen_random_uuid(), created_by uuid, trip_name text, status text default 'planning');
create table public.group_trip_participants(id uuid primary key default gen_random_uuid(), trip_id uuid references group_trips(id), user_id uuid,
  role text default 'participant', status text default 'invited', unique (trip_id, user_id));
alter table group_trips enable row level security; alter table group_trip_participants enable row level security;
create policy "Users can view trips they're part of" on group_trips for select using (created_by = auth.uid()
  or exists (select 1 from group_trip_participants where group_trip_participants.trip_id = group_trips.id and group_trip_participants.user_id = auth.uid()));
create policy "Users can create group trips" on group_trips for insert with check (created_by = auth.uid());
create policy view_own_participation_only on group_trip_participants for select using (user_id = auth.uid());
create policy manage_own_participation_simple on group_trip_participants for all using (user_id = auth.uid()) with check (user_id = auth.uid());
create policy organizers_view_all_participants on group_trip_participants for select using (trip_id in (select id from group_trips where created_by = auth.uid()));
create policy service_role_manage_participants on group_trip_participants for all to service_role using (true) with check (true);
