-- A SECURITY DEFINER helper whose owner the forced policies bind: 54001 when it runs.
-- owner rls_librarian
create table public.halls(id int primary key);
create table public.keys(id int primary key, hall int, holder uuid, valid boolean);
create function public.opens(h int) returns boolean language sql stable security definer set search_path = '' as
  $$ select exists (select from public.keys k where k.hall = h and k.holder = auth.uid() and k.valid) $$;
alter table public.halls enable row level security; alter table public.halls force row level security;
alter table public.keys enable row level security; alter table public.keys force row level security;
create policy h on public.halls for select using (public.opens(id));
create policy k on public.keys for select using (public.opens(hall));
insert into public.halls values (1), (2), (3);
insert into public.keys values (1, 1, :one, true), (2, 1, :two, true), (3, 2, :three, true), (4, 2, :one, false);
-- see halls: exists (select from public.keys k where k.hall = halls.id and k.holder = :user and k.valid)
-- see keys: exists (select from public.keys k where k.hall = keys.hall and k.holder = :user and k.valid)
