-- A helper that reads with its caller's rights the table whose policy calls it.
create table public.clubs_of(id int primary key, club uuid, member uuid, post text, since date);
create function public.heads(c uuid) returns boolean language sql stable as
  $$ select exists (select from clubs_of where club = c and member = auth.uid() and post in ('head', 'vice') and since is not null) $$;
alter table public.clubs_of enable row level security;
create policy mine on public.clubs_of for select using (member = auth.uid());
create policy head on public.clubs_of using (public.heads(club)) with check (public.heads(club));
insert into public.clubs_of values (1, :five, :one, 'head', '2020-01-01'), (2, :five, :two, 'member', '2020-01-01'),
  (3, :four, :three, 'vice', '2020-01-01'), (4, :four, :one, 'head', null);
-- see clubs_of: clubs_of.member = :user or exists (select from public.clubs_of c where c.club = clubs_of.club and c.member = :user and c.post in ('head', 'vice') and c.since is not null)
-- try one 1: update public.clubs_of set post = 'vice' where id = 2
-- try two 0: update public.clubs_of set post = 'head' where id = 2
