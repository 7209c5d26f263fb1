-- SPDX-License-Identifier: GPL-3.0-or-later
-- Found by the fuzzer (cautious options). "insert 0" is split by role, which names fuzz_editor, until then one class with authenticated;
-- notes is left for review (its function would be unbounded). What was left must be recognised although its class has another name.
create schema fuzz_found;
grant usage on schema fuzz_found to anon, authenticated, fuzz_editor;
create table fuzz_found.teams (id int primary key, owner uuid, other uuid, ref int, grp int, flag boolean, note text);
create table fuzz_found."a.b" (id int primary key, owner uuid, other uuid, ref int, grp int, flag boolean, note text);
create table fuzz_found.notes (id int primary key, owner uuid, other uuid, ref int, grp int, flag boolean, note text);
insert into fuzz_found.teams values (1, '00000001-0000-4000-8000-000000000000', null, 1, 1, true, 'a'), (2, '00000002-0000-4000-8000-000000000000', null, 1, 2, true, 'b');
insert into fuzz_found."a.b" select * from fuzz_found.teams;
insert into fuzz_found.notes select * from fuzz_found.teams;
alter table fuzz_found.teams enable row level security;
alter table fuzz_found."a.b" enable row level security;
alter table fuzz_found.notes enable row level security;
create policy everyone on fuzz_found.teams for select using (true);
create policy "insert 0" on fuzz_found."a.b" for insert to public
  with check ((select s.owner from fuzz_found."a.b" s where s.id = fuzz_found."a.b".ref) = auth.uid());
create policy "all 1" on fuzz_found."a.b" for all to authenticated
  using (exists (select 1 from fuzz_found.teams s where s.ref = fuzz_found."a.b".id and s.owner = auth.uid()));
create policy "all 0" on fuzz_found.notes as restrictive for all to anon, authenticated
  using (exists (with c as materialized (select s.* from fuzz_found.notes s) select 1 from c where c.owner = auth.uid() and c.grp = fuzz_found.notes.grp));
create policy "all 2" on fuzz_found.notes for all to anon, authenticated using (owner is null);
grant all on all tables in schema fuzz_found to anon, authenticated, fuzz_editor;
