-- SPDX-License-Identifier: MIT
-- Fourth generation: works, by a SECURITY DEFINER function (without SET search_path, and executable by PUBLIC).
create or replace function public.is_trip_participant(trip uuid, person uuid) returns boolean language sql stable security definer as
  $$ select exists (select 1 from public.group_trip_participants where trip_id = trip and user_id = person) $$;
create policy "Creator can view own trips" on public.group_trips for select using (created_by = auth.uid());
create policy "Participants can view their trips" on public.group_trips for select using (public.is_trip_participant(id, auth.uid()));
create policy "Users can create group trips" on public.group_trips for insert with check (auth.uid() = created_by);
create policy "Trip creators can update trips" on public.group_trips for update using (auth.uid() = created_by);
create policy "Users can view their own participant entry" on public.group_trip_participants for select using (user_id = auth.uid());
create policy "Organizers can view all participants" on public.group_trip_participants for select using (
  exists (select 1 from public.group_trips gt where gt.id = trip_id and gt.created_by = auth.uid()));
create policy "Participants can view other participants in shared trips" on public.group_trip_participants for select using (
  public.is_trip_participant(trip_id, auth.uid()));
create policy "Users can manage their own participation" on public.group_trip_participants for update using (user_id = auth.uid());
