-- SPDX-License-Identifier: GPL-3.0-or-later
-- the first attempt to fix them: participants still read themselves
create table public.group_trips(id uuid primary key default gen_random_uuid(), created_by uuid, trip_name text, status text default 'planning');
create table public.group_trip_participants(id uuid primary key default gen_random_uuid(), trip_id uuid references group_trips(id), user_id uuid,
  role text default 'participant', status text default 'invited', unique (trip_id, user_id));
alter table group_trips enable row level security; alter table group_trip_participants enable row level security;
create policy "Users can view trips they're part of" on group_trips for select using (created_by = auth.uid()
  or exists (select 1 from group_trip_participants where group_trip_participants.trip_id = group_trips.id and group_trip_participants.user_id = auth.uid()));
create policy users_view_own_trip_participants on group_trip_participants for select using (user_id = auth.uid()
  or trip_id in (select trip_id from group_trip_participants where user_id = auth.uid()));
create policy users_manage_own_participation on group_trip_participants for all using (user_id = auth.uid());
create policy organizers_manage_participants on group_trip_participants for all using (trip_id in (select id from group_trips where created_by = auth.uid()));
