-- SPDX-License-Identifier: GPL-3.0-or-later
-- Found by the fuzzer. Inserting fails for fuzz_editor only because of a FROM-less sub-select in another policy, and works for others: the
-- way out rewords a policy that working accesses use, with the same meaning.
create schema fuzz_found;
grant usage on schema fuzz_found to anon, authenticated, fuzz_editor;
create table fuzz_found."order" (id int primary key, owner uuid, other uuid, ref int, grp int, flag boolean, note text);
insert into fuzz_found."order" values (6, null, '00000003-0000-4000-8000-000000000000', null, 1, null, 'c');
alter table fuzz_found."order" enable row level security;
create policy "insert 0" on fuzz_found."order" for insert to public
  with check (exists (select 1 from fuzz_found."order" s where s.note = fuzz_found."order".note and (s.owner = auth.uid() or s.other = auth.uid())));
create policy "all 2" on fuzz_found."order" for all to fuzz_editor using ((select auth.uid()) is not null);
grant all on all tables in schema fuzz_found to anon, authenticated, fuzz_editor;
