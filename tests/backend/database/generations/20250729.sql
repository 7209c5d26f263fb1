-- SPDX-License-Identifier: MIT
-- Third generation: no policy reads its own table any more, but each table's policy still reads the other.
create policy "Users can view trips they're part of" on public.group_trips for select using (
  auth.uid() = created_by
  or exists (select 1 from public.group_trip_participants where trip_id = group_trips.id and user_id = auth.uid()));
create policy "Users can create group trips" on public.group_trips for insert with check (auth.uid() = created_by);
create policy "Trip creators can update trips" on public.group_trips for update using (auth.uid() = created_by);
create policy view_own_participation_only on public.group_trip_participants for select using (user_id = auth.uid());
create policy manage_own_participation_simple on public.group_trip_participants for all using (user_id = auth.uid()) with check (user_id = auth.uid());
create policy organizers_view_all_participants on public.group_trip_participants for select using (
  exists (select 1 from public.group_trips gt where gt.id = trip_id and gt.created_by = auth.uid()));
create policy service_role_manage_participants on public.group_trip_participants for all to service_role using (true) with check (true);
