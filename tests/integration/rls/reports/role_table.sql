-- A table of roles: everybody sees his own, a keeper all, and only a keeper changes one.
create table public.ranks(id int primary key, member uuid unique not null, title text not null);
alter table public.ranks enable row level security;
create policy mine on public.ranks for select using (member = auth.uid());
create policy keepers_read on public.ranks for select using (
  exists (select from public.ranks r where r.member = auth.uid() and r.title = 'keeper'));
create policy keepers_change on public.ranks for update using (
  exists (select from public.ranks r where r.member = auth.uid() and r.title = 'keeper'));
insert into public.ranks values (1, :one, 'keeper'), (2, :two, 'reader'), (3, :three, 'reader');
-- see ranks: ranks.member = :user or :user in (select r.member from public.ranks r where r.title = 'keeper')
-- try one 1: update public.ranks set title = 'keeper' where id = 3
-- try two 0: update public.ranks set title = 'keeper' where id = 2
