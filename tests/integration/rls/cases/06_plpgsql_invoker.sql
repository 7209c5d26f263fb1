-- SPDX-License-Identifier: GPL-3.0-or-later
create table public.profiles(id uuid primary key, role text default 'user', org int);
create function public.is_admin() returns boolean language plpgsql stable as $$
declare r text; begin select p.role into r from profiles p where p.id = auth.uid(); return r = 'admin'; end $$;
alter table profiles enable row level security;
create policy s on profiles for select to authenticated using (is_admin() or id = auth.uid());
create policy u on profiles for update to authenticated using (is_admin()) with check (is_admin());
