-- SPDX-License-Identifier: GPL-3.0-or-later
-- EXISTS correlated with the outer row; USING and WITH CHECK; scalar sublink form; ARRAY form
create table public.docs(id int primary key, folder int, owner uuid, level int default 0);
alter table docs enable row level security;
create policy r on docs for select to authenticated using (exists(select 1 from docs d where d.folder = docs.folder and d.owner = auth.uid()));
create policy w on docs for update to authenticated using ((select max(d.level) from docs d where d.owner = auth.uid()) >= docs.level)
  with check (docs.folder = any (array(select d.folder from docs d where d.owner = auth.uid())));
create policy i on docs for insert to authenticated with check (owner = auth.uid() and not exists(select 1 from docs d where d.folder = docs.folder and d.owner <> auth.uid() and d.level > 5));
