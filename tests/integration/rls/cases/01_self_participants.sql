-- SPDX-License-Identifier: GPL-3.0-or-later
-- self recursion, IN (select ...) form on itself
create table public.group_trip_participants(id uuid primary key default gen_random_uuid(), trip_id int not null, user_id uuid not null, role text not null default 'member', note text);
alter table group_trip_participants enable row level security;
create policy "view co-participants" on group_trip_participants for select to authenticated
  using (trip_id in (select trip_id from group_trip_participants where user_id = auth.uid()));
create policy "join" on group_trip_participants for insert to authenticated with check (user_id = auth.uid());
create policy "leave" on group_trip_participants for delete to authenticated using (user_id = auth.uid());
