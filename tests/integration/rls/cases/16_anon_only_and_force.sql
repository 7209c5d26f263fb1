-- SPDX-License-Identifier: GPL-3.0-or-later
-- role-dependent recursion (authenticated only), FORCE RLS, quoted identifiers
create table public."Mixed Case"("Id" int primary key, "User Id" uuid, "Kind" text);
alter table "Mixed Case" enable row level security; alter table "Mixed Case" force row level security;
create policy "It's a policy" on "Mixed Case" for select to authenticated using ("User Id" = auth.uid() or exists(select 1 from "Mixed Case" m where m."User Id" = auth.uid() and m."Kind" = 'O''Brien'));
create policy anon_read on "Mixed Case" for select to anon using ("Kind" = 'public');
create policy "svc" on "Mixed Case" for all to service_role using (true);
