-- SPDX-License-Identifier: GPL-3.0-or-later
-- two functions of one name, told apart by their number of arguments; one of those may be left out
create table public.members(id int primary key, org int, user_id uuid, role text);
create function public.is_in(org_id int) returns boolean language sql stable as $$ select exists (select from public.members m where m.org = org_id and m.user_id = auth.uid()) $$;
create function public.is_in(org_id int, wanted text, other text default 'admin') returns boolean language sql stable as
  $$ select exists (select from public.members m where m.org = org_id and m.role in (wanted, other) and m.user_id = auth.uid()) $$;
alter table members enable row level security;
create policy s on members for select using (is_in(org));
create policy u on members for update using (is_in(org, 'boss')) with check (is_in(org, 'boss', 'member'));
