-- SPDX-License-Identifier: MIT
-- Fifth generation: short names, and each table's policy reads the other one again.
create policy creator_owns_trips on public.group_trips for all using (created_by = auth.uid()) with check (created_by = auth.uid());
create policy participants_view_trips on public.group_trips for select using (
  id in (select gtp.trip_id from public.group_trip_participants gtp where gtp.user_id = auth.uid()));
create policy users_own_participation on public.group_trip_participants for all using (user_id = auth.uid()) with check (user_id = auth.uid());
create policy organizers_manage_all_participants on public.group_trip_participants for all using (
  exists (select 1 from public.group_trips gt where gt.id = trip_id and gt.created_by = auth.uid()));
