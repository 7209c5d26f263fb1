-- The tenant is looked up in the table of profiles, by that table and by others.
create table public.badges(id uuid primary key, firm int, post text);
create table public.orders(id int primary key, firm int); create table public.invoices(id int primary key, firm int);
alter table public.badges enable row level security; alter table public.orders enable row level security;
alter table public.invoices enable row level security;
create policy b on public.badges using (firm in (select firm from public.badges where id = auth.uid()));
create policy o on public.orders using (firm in (select firm from public.badges where id = auth.uid()));
create policy i on public.invoices using (firm = (select firm from public.badges where id = auth.uid())
  and (select post from public.badges where id = auth.uid()) in ('owner', 'books'));
insert into public.badges values (:one, 1, 'owner'), (:two, 1, 'hand'), (:three, 2, 'books');
insert into public.orders values (1, 1), (2, 2); insert into public.invoices values (1, 1), (2, 2);
-- see badges: badges.firm in (select b.firm from public.badges b where b.id = :user)
-- see orders: orders.firm in (select b.firm from public.badges b where b.id = :user)
-- see invoices: invoices.firm in (select b.firm from public.badges b where b.id = :user and b.post in ('owner', 'books'))
-- try two 0: delete from public.invoices where id = 1
-- try three 1: delete from public.orders where id = 2
