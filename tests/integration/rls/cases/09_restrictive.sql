-- SPDX-License-Identifier: GPL-3.0-or-later
create table public.accounts(id int primary key, tenant int, user_id uuid, locked boolean default false);
alter table accounts enable row level security;
create policy base on accounts for select to authenticated using (true);
create policy tenant_wall on accounts as restrictive for all to authenticated using (tenant in (select a.tenant from accounts a where a.user_id = auth.uid())) with check (tenant in (select a.tenant from accounts a where a.user_id = auth.uid() and not a.locked));
create policy ins on accounts for insert to authenticated with check (user_id = auth.uid());
create policy upd on accounts for update to authenticated using (user_id = auth.uid());
