-- SPDX-License-Identifier: MIT
-- Closest to the code: some columns missing, a key without a default, user ids as text.
create table public.affiliate_sales (
  id uuid primary key,
  user_id text,
  digistore24_order_id text unique,
  product_name text,
  amount numeric,
  status text default 'pending' check (status in ('pending', 'confirmed', 'refunded', 'chargeback')),
  created_at timestamptz default now()
);
insert into public.affiliate_sales (id, user_id, amount) values (gen_random_uuid(), 'a0000000-0000-4000-8000-000000000003', 5);
create table public.user_wishlists (
  id uuid primary key default gen_random_uuid(),
  user_id text not null,
  product_id text not null,
  product_name text not null,
  price numeric,
  priority text,
  notes text,
  created_at timestamptz default now(),
  updated_at timestamptz default now()
);
alter table public.user_wishlists enable row level security;
create policy "open to all" on public.user_wishlists for all using (true) with check (true);
