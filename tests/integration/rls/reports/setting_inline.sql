-- The caller's row is found by a setting of the session, compared with a scalar sub-select.
create table public.clerks(id int primary key, branch int);
alter table public.clerks enable row level security;
create policy same_branch on public.clerks using (
  branch = (select c.branch from public.clerks c where c.id = nullif(current_setting('app.clerk', true), '')::int));
insert into public.clerks values (1, 1), (2, 1), (3, 2);
-- see clerks: clerks.branch = (select c.branch from public.clerks c where c.id = :number)
