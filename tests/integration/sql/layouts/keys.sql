-- SPDX-License-Identifier: MIT
-- Keys that the table does not make by itself, lists whose keys have another type than the items name, items that name their user.
create table public.affiliate_sales (id integer primary key, user_id uuid, amount numeric);
insert into public.affiliate_sales values (7, 'a0000000-0000-4000-8000-000000000001', 3);
create table public.user_wishlists (id text primary key, user_id uuid not null, product_id text, product_name text);
insert into public.user_wishlists values ('first', 'a0000000-0000-4000-8000-000000000002', 'p', 'Chair');
create table public.wishlist_items (id uuid primary key default gen_random_uuid(), wishlist_id uuid, user_id uuid references auth.users (id), product_id text);
insert into public.wishlist_items (user_id, product_id) values ('a0000000-0000-4000-8000-000000000001', 'q');
alter table public.wishlist_items enable row level security;
create policy own on public.wishlist_items for all using (user_id = auth.uid());
