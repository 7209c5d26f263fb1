-- SPDX-License-Identifier: GPL-3.0-or-later
create table public.orgs(id int primary key, owner_id uuid, name text);
create table public.projects(id int primary key, org_id int, visibility text default 'private');
create table public.org_members(org_id int, user_id uuid, role text, project_id int, primary key(org_id,user_id));
alter table orgs enable row level security; alter table projects enable row level security; alter table org_members enable row level security;
create policy o on orgs for select to authenticated using (owner_id = auth.uid() or id in (select m.org_id from org_members m where m.user_id = auth.uid()));
create policy p on projects for select to authenticated using (visibility='public' or org_id in (select o.id from orgs o));
create policy m on org_members for select to authenticated using (user_id = auth.uid() or project_id in (select p.id from projects p));
create policy pw on projects for update to authenticated using (exists(select 1 from orgs o where o.id=org_id and o.owner_id=auth.uid())) with check (exists(select 1 from orgs o where o.id=org_id and o.owner_id=auth.uid()));
