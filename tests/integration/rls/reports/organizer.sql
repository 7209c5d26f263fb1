-- Two tables that read each other, with LIMIT 1 inside EXISTS, for reading, changing and joining.
create table public.fairs(id int primary key, host uuid, open boolean);
create table public.stalls(id int primary key, fair int, holder uuid);
alter table public.fairs enable row level security; alter table public.stalls enable row level security;
create policy f on public.fairs for select using (
  open or host = auth.uid() or id in (select s.fair from public.stalls s where s.holder = auth.uid()));
create policy s_read on public.stalls for select using (
  holder = auth.uid() or exists (select 1 from public.fairs f where f.id = fair and f.host = auth.uid() limit 1));
create policy s_change on public.stalls for update using (
  holder = auth.uid() or exists (select 1 from public.fairs f where f.id = fair and f.host = auth.uid() limit 1));
create policy s_join on public.stalls for insert with check (
  holder = auth.uid() and exists (select 1 from public.fairs f where f.id = fair and f.open));
insert into public.fairs values (1, :one, true), (2, :two, false), (3, :three, false);
insert into public.stalls values (1, 1, :two), (2, 2, :three), (3, 3, :one);
-- see fairs: fairs.open or fairs.host = :user or fairs.id in (select s.fair from public.stalls s where s.holder = :user)
-- see stalls: stalls.holder = :user or exists (select from public.fairs f where f.id = stalls.fair and f.host = :user)
-- try one 1: update public.stalls set holder = holder where id = 1
-- try four 1: insert into public.stalls values (20, 1, :four)
-- try four 42501: insert into public.stalls values (21, 2, :four)
