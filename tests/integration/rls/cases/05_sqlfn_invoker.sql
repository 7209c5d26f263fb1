-- SPDX-License-Identifier: GPL-3.0-or-later
create table public.members(org_id int, user_id uuid, role text, primary key(org_id,user_id));
create function public.my_orgs() returns setof int language sql stable as $$ select org_id from members where user_id = auth.uid() $$;
create function public.is_org_admin(o int) returns boolean language sql stable as $$ select exists(select 1 from members where org_id=o and user_id = auth.uid() and role='admin') $$;
alter table members enable row level security;
create policy s on members for select to authenticated using (org_id in (select my_orgs()));
create policy u on members for update to authenticated using (is_org_admin(org_id)) with check (is_org_admin(org_id));
