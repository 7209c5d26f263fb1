-- SPDX-License-Identifier: MIT
-- Views, an index and a check that name the type of a column which has to take text.
create type public.sale_state as enum ('pending', 'confirmed');
create table public.affiliate_sales (
  id uuid primary key default gen_random_uuid(),
  user_id uuid,
  affiliate_id uuid,
  amount numeric(4, 2),
  status public.sale_state default 'pending',
  constraint known_state check (status in ('pending'::public.sale_state, 'confirmed'::public.sale_state))
);
insert into public.affiliate_sales (affiliate_id, amount) values ('a0000000-0000-4000-8000-000000000001', 12);
create index pending_sales on public.affiliate_sales (status) where status = 'pending';
create view public.sales_summary as select affiliate_id, status, sum(amount) as total from public.affiliate_sales where status = 'pending' group by 1, 2;
create view public.sales_totals as select sum(total) as total from public.sales_summary;
revoke all on public.sales_summary from anon, authenticated;
comment on view public.sales_summary is 'for the monthly letter';
create table public.user_wishlists (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null,
  product_id uuid not null,
  product_name text not null,
  price numeric(10, 2)
);
create view public.wishes with (security_barrier = true) as select user_id, product_id, price from public.user_wishlists;
