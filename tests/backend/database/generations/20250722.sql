-- SPDX-License-Identifier: MIT
-- Second generation: the participants' policies were renamed; the first still reads its own table.
create policy "Users can view trips they're part of" on public.group_trips for select using (
  auth.uid() = created_by
  or exists (select 1 from public.group_trip_participants where trip_id = group_trips.id and user_id = auth.uid()));
create policy "Users can create group trips" on public.group_trips for insert with check (auth.uid() = created_by);
create policy "Trip creators can update trips" on public.group_trips for update using (auth.uid() = created_by);
create policy users_view_own_trip_participants on public.group_trip_participants for select using (
  user_id = auth.uid()
  or trip_id in (select gtp.trip_id from public.group_trip_participants gtp where gtp.user_id = auth.uid()));
create policy users_manage_own_participation on public.group_trip_participants for all using (user_id = auth.uid());
create policy organizers_manage_participants on public.group_trip_participants for all using (
  exists (select 1 from public.group_trips gt where gt.id = trip_id and gt.created_by = auth.uid()));
