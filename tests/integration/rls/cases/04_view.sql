-- SPDX-License-Identifier: GPL-3.0-or-later
-- recursion through a security_invoker view; a definer view over the same tables must NOT be flagged
create table public.teams(id int primary key, owner_id uuid, name text);
create table public.team_members(team_id int, user_id uuid, role text, primary key(team_id,user_id));
create view public.my_teams with (security_invoker=true) as select m.team_id, m.user_id, m.role from team_members m;
create view public.all_teams as select id, owner_id from teams;
alter table teams enable row level security; alter table team_members enable row level security;
create policy t on teams for select to authenticated using (exists(select 1 from my_teams v where v.team_id = teams.id and v.user_id = auth.uid()));
create policy m on team_members for select to authenticated using (exists(select 1 from teams t where t.id = team_members.team_id));
create policy md on team_members for delete to authenticated using (exists(select 1 from all_teams t where t.id = team_members.team_id and t.owner_id = auth.uid()));
