-- SPDX-License-Identifier: MIT
-- Columns too short for what the backend writes, whole numbers for money, times that are not filled in, one wish a person.
create table public.affiliate_sales (
  id uuid primary key default gen_random_uuid(),
  user_id uuid references auth.users (id),
  session_id varchar(10),
  customer_email varchar(20),
  affiliate_id varchar(10),
  product_name varchar(10),
  product_url varchar(10),
  category varchar(4),
  status varchar(9) default 'pending',
  currency char(3),
  amount_total integer,
  amount integer not null default 0,
  commission numeric(4, 0),
  commission_rate double precision,
  is_test_mode text,
  digistore24_order_id varchar(5) unique,
  sale_date date not null,
  created_at timestamp
);
insert into public.affiliate_sales (session_id, amount, sale_date) values ('short', 12, '2025-07-01');
create table public.user_wishlists (
  user_id uuid not null unique,
  product_id varchar(3) not null,
  product_name varchar(3),
  price integer,
  notes varchar(3),
  primary key (user_id, product_id)
);
insert into public.user_wishlists values ('a0000000-0000-4000-8000-000000000003', 'abc', 'Tub', 5);
