-- SPDX-License-Identifier: MIT
-- The tables as the first repair of the incident made them: profiles as owners, a generated commission, lists of wishes.
create table public.user_profiles (
  id uuid primary key default gen_random_uuid(),
  user_id uuid unique references auth.users (id) on delete cascade,
  name text
);
insert into public.user_profiles (id, user_id, name) select ('c' || substr(id::text, 2))::uuid, id, email from auth.users;
alter table public.user_profiles enable row level security;
create policy own on public.user_profiles for all using (user_id = auth.uid());
create table public.affiliate_sales (
  id uuid primary key default gen_random_uuid(),
  affiliate_id uuid not null references public.user_profiles (id) on delete cascade,
  seller_id uuid references public.user_profiles (id),
  product_id uuid not null,
  product_name varchar(255) not null,
  sale_amount numeric(10, 2) not null check (sale_amount > 0),
  commission_rate numeric(5, 4) not null default 0.05 check (commission_rate between 0 and 1),
  commission_amount numeric(10, 2) generated always as (sale_amount * commission_rate) stored,
  status varchar(20) not null default 'pending' check (status in ('pending', 'confirmed', 'paid', 'cancelled')),
  created_at timestamptz default now(),
  updated_at timestamptz default now()
);
insert into public.affiliate_sales (affiliate_id, seller_id, product_id, product_name, sale_amount)
  values ('c0000000-0000-4000-8000-000000000001', 'c0000000-0000-4000-8000-000000000002', gen_random_uuid(), 'Kayak', 200);
create index idx_affiliate_sales_affiliate_id on public.affiliate_sales (affiliate_id);
alter table public.affiliate_sales enable row level security;
create policy affiliate_sales_select on public.affiliate_sales for select using (
  affiliate_id in (select id from public.user_profiles where user_id = auth.uid()) or seller_id in (select id from public.user_profiles where user_id = auth.uid()));
create policy affiliate_sales_update on public.affiliate_sales for update using (affiliate_id in (select id from public.user_profiles where user_id = auth.uid()));
comment on policy affiliate_sales_update on public.affiliate_sales is 'the hole';
create table public.user_wishlists (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references public.user_profiles (id) on delete cascade,
  name varchar(255) not null,
  description text,
  is_public boolean default false,
  is_default boolean default false,
  created_at timestamptz default now(),
  updated_at timestamptz default now(),
  unique (user_id, name)
);
insert into public.user_wishlists (user_id, name) values ('c0000000-0000-4000-8000-000000000001', 'My Wishlist');
alter table public.user_wishlists enable row level security;
create policy wishlists_own on public.user_wishlists for all using (user_id in (select id from public.user_profiles where user_id = auth.uid()));
create table public.wishlist_items (
  id uuid primary key default gen_random_uuid(),
  wishlist_id uuid not null references public.user_wishlists (id) on delete cascade,
  product_id uuid not null,
  added_at timestamptz default now(),
  unique (wishlist_id, product_id)
);
alter table public.wishlist_items enable row level security;
create function public.update_updated_at_column() returns trigger language plpgsql as $$ begin NEW.updated_at = now(); return NEW; end $$;
create trigger update_affiliate_sales_updated_at before update on public.affiliate_sales for each row execute function public.update_updated_at_column();
