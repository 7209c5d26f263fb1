-- One table recurses; others read it and fail with it, by EXISTS, by IN with a list and by a scalar sub-select.
create table public.people(id uuid primary key, post text, branch int);
create table public.letters(id int primary key, sender uuid, branch int);
create table public.rules(id int primary key);
alter table public.people enable row level security; alter table public.letters enable row level security;
alter table public.rules enable row level security;
create policy self on public.people for select using (id = auth.uid());
create policy leads on public.people for select using (
  exists (select from public.people p where p.id = auth.uid() and p.post in ('lead', 'director')));
create policy sent on public.letters using (sender = auth.uid());
create policy led on public.letters using (
  exists (select from public.people p where p.id = auth.uid() and p.post = 'lead' and p.branch = letters.branch));
create policy directed on public.rules using ((select post from public.people where id = auth.uid()) = 'director');
insert into public.people values (:one, 'lead', 1), (:two, 'clerk', 1), (:three, 'director', 2), (:four, 'clerk', 2);
insert into public.letters values (1, :two, 1), (2, :four, 2), (3, :one, 1);
insert into public.rules values (1);
-- see people: people.id = :user or :user in (select p.id from public.people p where p.post in ('lead', 'director'))
-- see letters: letters.sender = :user or letters.branch in (select p.branch from public.people p where p.id = :user and p.post = 'lead')
-- see rules: :user in (select p.id from public.people p where p.post = 'director')
-- try one 1: delete from public.letters where id = 1
-- try one 0: delete from public.letters where id = 2
