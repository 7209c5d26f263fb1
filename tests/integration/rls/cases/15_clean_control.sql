-- SPDX-License-Identifier: GPL-3.0-or-later
-- negative control: DAG of policies, no recursion anywhere
create table public.a(id int primary key, u uuid); create table public.b(id int primary key, a_id int); create table public.c(id int primary key, b_id int);
alter table a enable row level security; alter table b enable row level security; alter table c enable row level security;
create policy pa on a for all to authenticated using (u = auth.uid());
create policy pb on b for all to authenticated using (exists(select 1 from a where a.id=b.a_id));
create policy pc on c for all to authenticated using (exists(select 1 from b where b.id=c.b_id)) with check (exists(select 1 from b join a on a.id=b.a_id where b.id=c.b_id));
create function public.adm() returns boolean language sql stable security definer set search_path='' as $$ select exists(select 1 from public.a where a.u=auth.uid()) $$;
create policy pa2 on a for select to authenticated using (public.adm());
