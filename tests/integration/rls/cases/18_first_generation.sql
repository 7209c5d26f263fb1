-- SPDX-License-Identifier: GPL-3.0-or-later
-- the policies with which the backend was born: both tables read each other, participants read themselves as well
create table public.group_trips(id uuid primary key default gen_random_uuid(), created_by uuid, trip_name text, status text default 'planning');
create table public.group_trip_participants(id uuid primary key default gen_random_uuid(), trip_id uuid references group_trips(id), user_id uuid,
  role text default 'participant', status text default 'invited', unique (trip_id, user_id));
alter table group_trips enable row level security; alter table group_trip_participants enable row level security;
create policy "Users can view trips they're part of" on group_trips for select using (created_by = auth.uid()
  or exists (select 1 from group_trip_participants where group_trip_participants.trip_id = group_trips.id and group_trip_participants.user_id = auth.uid()));
create policy "Users can create group trips" on group_trips for insert with check (created_by = auth.uid());
create policy "Trip creators can update trips" on group_trips for update using (created_by = auth.uid());
create policy "Users can view trip participants" on group_trip_participants for select using (exists (select 1 from group_trips
  where group_trips.id = group_trip_participants.trip_id and (group_trips.created_by = auth.uid()
    or exists (select 1 from group_trip_participants gtp where gtp.trip_id = group_trips.id and gtp.user_id = auth.uid()))));
create policy "Trip organizers can manage participants" on group_trip_participants for all using (exists (select 1 from group_trips
  where group_trips.id = group_trip_participants.trip_id and group_trips.created_by = auth.uid()));
