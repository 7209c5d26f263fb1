-- Users, their posts and the posts' codes, one of which lets its holders see everything.
create table public.codes(id int primary key, code text); create table public.folk(id uuid primary key, mail text);
create table public.posts_of(id int primary key, person uuid, code int);
alter table public.codes enable row level security; alter table public.folk enable row level security;
alter table public.posts_of enable row level security;
create policy c on public.codes for select using (true);
create policy f_change on public.folk for update using (id = auth.uid() or exists (
  select from public.posts_of p join public.codes c on c.id = p.code where p.person = auth.uid() and c.code = 'ALL'));
create policy f_read on public.folk for select using (id = auth.uid() or exists (
  select from public.posts_of p join public.codes c on c.id = p.code where p.person = auth.uid() and c.code = 'ALL'));
create policy p_read on public.posts_of for select using (
  person in (select f.id from public.folk f where f.id = auth.uid()) or exists (
    select from public.posts_of p join public.codes c on c.id = p.code where p.person = auth.uid() and c.code = 'ALL'));
insert into public.codes values (1, 'ALL'), (2, 'OWN');
insert into public.folk values (:one, 'a'), (:two, 'b'), (:three, 'c');
insert into public.posts_of values (1, :one, 1), (2, :two, 2), (3, :three, 2);
-- see folk: folk.id = :user or :user in (select p.person from public.posts_of p join public.codes c on c.id = p.code where c.code = 'ALL')
-- see posts_of: posts_of.person = :user or :user in (select p.person from public.posts_of p join public.codes c on c.id = p.code where c.code = 'ALL')
-- try one 1: update public.folk set mail = 'z' where id = :two
-- try two 0: update public.folk set mail = 'z' where id = :one
