-- SPDX-License-Identifier: GPL-3.0-or-later
create table public.admin_users(user_id uuid primary key, role text not null default 'viewer', email text);
alter table admin_users enable row level security;
create policy "admins read" on admin_users for select using (exists(select 1 from admin_users where user_id = auth.uid() and role='admin'));
create policy "admins manage" on admin_users for all to authenticated using (exists(select 1 from admin_users au where au.user_id = auth.uid() and au.role='admin')) with check (exists(select 1 from admin_users au where au.user_id = auth.uid() and au.role in ('admin','super')));
create table public.audit_log(id serial primary key, actor uuid, msg text);
alter table audit_log enable row level security;
create policy "admin audit" on audit_log for select to authenticated using (exists(select 1 from admin_users a where a.user_id = auth.uid() and a.role = 'admin'));
create policy "own audit" on audit_log for select to authenticated using (actor = auth.uid());
