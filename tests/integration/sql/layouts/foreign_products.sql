-- SPDX-License-Identifier: MIT
-- Products of a table of their own, numbered keys whose sequences nobody may use, an order number that every sale must have.
create table public.products (id uuid primary key default gen_random_uuid(), name text);
create table public.affiliate_sales (
  id bigserial primary key, user_id uuid not null references auth.users(id), product_id uuid not null references public.products(id), product_name text not null,
  amount numeric(10, 2) not null default 0, status text default 'pending', digistore24_order_id text not null unique);
create table public.user_wishlists (id bigserial primary key, user_id uuid not null references auth.users(id) on delete cascade, product_id uuid not null references public.products(id) on delete cascade, product_name text not null, price numeric(10,2) check (price > 0), unique (user_id, product_id));
revoke all on all sequences in schema public from anon, authenticated, service_role;
revoke all on all tables in schema public from anon, authenticated, service_role;
grant select on public.group_trips, public.group_trip_participants, public.admin_users to anon, authenticated, service_role;
