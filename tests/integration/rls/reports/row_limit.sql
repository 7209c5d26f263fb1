-- Two shelves each, counted in the INSERT policy, with the caller wrapped in the SELECT policy: no real cycle.
create table public.shelves(id int primary key, keeper uuid not null default auth.uid());
alter table public.shelves enable row level security;
create policy read_mine on public.shelves for select to authenticated using (keeper = (select auth.uid()));
create policy two_each on public.shelves for insert to authenticated with check (
  keeper = auth.uid() and 2 > (select count(*) from public.shelves s where s.keeper = auth.uid()));
insert into public.shelves values (1, :one), (2, :one), (3, :two);
-- see shelves: shelves.keeper = :user
-- try one 42501: insert into public.shelves values (10, :one)
-- try two 1: insert into public.shelves values (11, :two)
-- try two 42501: insert into public.shelves values (12, :one)
-- try three 2: insert into public.shelves values (13, :three), (14, :three)
