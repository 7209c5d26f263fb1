-- SPDX-License-Identifier: MIT
-- The production database as of the incident, after tests/support/supabase_shim.sql: real rows, the first generation of policies,
-- no affiliate_sales and no user_wishlists.

insert into auth.users (id, email, role, aud) values
  ('a0000000-0000-4000-8000-000000000001', 'anna@example.com', 'authenticated', 'authenticated'),
  ('a0000000-0000-4000-8000-000000000002', 'ben@example.com', 'authenticated', 'authenticated'),
  ('a0000000-0000-4000-8000-000000000003', 'carla@example.com', 'authenticated', 'authenticated'),
  ('a0000000-0000-4000-8000-000000000004', 'dan@example.com', 'authenticated', 'authenticated'),
  ('a0000000-0000-4000-8000-000000000009', 'admin@example.com', 'authenticated', 'authenticated');

create table public.profiles (
  id bigint generated always as identity primary key,
  user_id text not null unique,
  email text,
  full_name text,
  role text not null default 'user',
  created_at timestamptz not null default now()
);
insert into public.profiles (user_id, email, full_name, role)
  select id::text, email, initcap(split_part(email, '@', 1)), case when email like 'admin@%' then 'admin' else 'user' end from auth.users order by id;
create function public.get_user_role(person uuid) returns text language sql stable security definer as
  $$ select role from public.profiles where user_id = person::text $$;
alter table public.profiles enable row level security;
create policy "Users can view own profile" on public.profiles for select using (auth.uid()::text = user_id);
create policy "Users can update own profile" on public.profiles for update using (auth.uid()::text = user_id);
create policy "Admins can view all profiles" on public.profiles for select using (public.get_user_role(auth.uid()) = 'admin');

create table public.admin_users (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users (id) on delete cascade,
  email text not null,
  role text not null default 'admin',
  status text not null default 'active',
  region text,
  permissions jsonb not null default '{}',
  created_at timestamptz not null default now()
);
insert into public.admin_users (user_id, email, role, region) values
  ('a0000000-0000-4000-8000-000000000009', 'admin@example.com', 'super_admin', 'AU'),
  ('a0000000-0000-4000-8000-000000000004', 'dan@example.com', 'admin', 'NZ');
alter table public.admin_users enable row level security;
create policy "Admin users can view all admin records" on public.admin_users for select using (
  exists (select 1 from public.admin_users au where au.user_id = auth.uid() and au.status = 'active'));

create table public.group_trips (
  id uuid primary key default gen_random_uuid(),
  created_by uuid not null references auth.users (id) on delete cascade,
  trip_name text not null,
  description text,
  start_date date,
  end_date date,
  meeting_point jsonb,
  route_data jsonb,
  budget_coordination jsonb,
  status text not null default 'planning' check (status in ('planning', 'active', 'completed', 'cancelled')),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
create table public.group_trip_participants (
  id uuid primary key default gen_random_uuid(),
  trip_id uuid not null references public.group_trips (id) on delete cascade,
  user_id uuid not null references auth.users (id) on delete cascade,
  role text not null default 'participant' check (role in ('organizer', 'participant')),
  status text not null default 'invited' check (status in ('invited', 'accepted', 'declined')),
  joined_at timestamptz not null default now(),
  unique (trip_id, user_id)
);
insert into public.group_trips (id, created_by, trip_name, description, start_date, end_date, status) values
  ('b0000000-0000-4000-8000-000000000001', 'a0000000-0000-4000-8000-000000000001', 'Great Ocean Road', 'Ten days along the coast', '2025-09-01', '2025-09-10', 'planning'),
  ('b0000000-0000-4000-8000-000000000002', 'a0000000-0000-4000-8000-000000000002', 'Red Centre', 'Alice Springs and Uluru', '2025-08-05', '2025-08-19', 'active'),
  ('b0000000-0000-4000-8000-000000000003', 'a0000000-0000-4000-8000-000000000001', 'Tasmania', null, '2025-02-01', '2025-02-14', 'completed');
insert into public.group_trip_participants (trip_id, user_id, role, status) values
  ('b0000000-0000-4000-8000-000000000001', 'a0000000-0000-4000-8000-000000000001', 'organizer', 'accepted'),
  ('b0000000-0000-4000-8000-000000000001', 'a0000000-0000-4000-8000-000000000002', 'participant', 'accepted'),
  ('b0000000-0000-4000-8000-000000000001', 'a0000000-0000-4000-8000-000000000003', 'participant', 'invited'),
  ('b0000000-0000-4000-8000-000000000002', 'a0000000-0000-4000-8000-000000000002', 'organizer', 'accepted'),
  ('b0000000-0000-4000-8000-000000000002', 'a0000000-0000-4000-8000-000000000001', 'participant', 'accepted'),
  ('b0000000-0000-4000-8000-000000000003', 'a0000000-0000-4000-8000-000000000001', 'organizer', 'accepted');
alter table public.group_trips enable row level security;
alter table public.group_trip_participants enable row level security;

create policy "Users can view trips they're part of" on public.group_trips for select using (
  auth.uid() = created_by
  or exists (select 1 from public.group_trip_participants where trip_id = group_trips.id and user_id = auth.uid()));
create policy "Users can create group trips" on public.group_trips for insert with check (auth.uid() = created_by);
create policy "Trip creators can update trips" on public.group_trips for update using (auth.uid() = created_by);
create policy "Users can view trip participants" on public.group_trip_participants for select using (
  exists (
    select 1 from public.group_trips gt where gt.id = trip_id and (
      gt.created_by = auth.uid()
      or exists (select 1 from public.group_trip_participants gtp where gtp.trip_id = gt.id and gtp.user_id = auth.uid()))));
create policy "Trip organizers can manage participants" on public.group_trip_participants for all using (
  exists (select 1 from public.group_trips where id = trip_id and created_by = auth.uid()));

-- Row level security without a policy that lets anyone write: 42501 for the application.
create table public.agent_logs (
  id uuid primary key default gen_random_uuid(),
  user_id uuid references auth.users (id) on delete cascade,
  action text not null,
  details jsonb not null default '{}',
  created_at timestamptz not null default now()
);
insert into public.agent_logs (user_id, action) values ('a0000000-0000-4000-8000-000000000001', 'chat'), ('a0000000-0000-4000-8000-000000000002', 'chat');
alter table public.agent_logs enable row level security;
create policy "Users can view own agent logs" on public.agent_logs for select using (auth.uid() = user_id);

create table public.expenses (
  id bigint generated always as identity primary key,
  user_id uuid not null references auth.users (id) on delete cascade,
  category text not null,
  amount numeric(12, 2) not null,
  description text,
  date date not null default current_date,
  created_at timestamptz not null default now()
);
create table public.calendar_events (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users (id) on delete cascade,
  title text not null,
  starts_at timestamptz not null,
  created_at timestamptz not null default now()
);
create table public.user_settings (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null unique references auth.users (id) on delete cascade,
  settings jsonb not null default '{}',
  updated_at timestamptz not null default now()
);
create table public.social_posts (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users (id) on delete cascade,
  content text not null,
  created_at timestamptz not null default now()
);
insert into public.expenses (user_id, category, amount, description, date)
  select u.id, (array['fuel', 'food', 'camping', 'repairs'])[1 + n % 4], 10 + n * 3.5, 'expense ' || n, date '2025-07-01' + n
  from auth.users u cross join generate_series(1, 40) n;
insert into public.calendar_events (user_id, title, starts_at)
  select u.id, 'Event ' || n, timestamptz '2025-08-01 09:00+00' + n * interval '1 day' from auth.users u cross join generate_series(1, 5) n;
insert into public.user_settings (user_id, settings) select id, '{"units": "metric", "theme": "dark"}' from auth.users;
insert into public.social_posts (user_id, content) select u.id, 'Post ' || n || ' of ' || u.email from auth.users u cross join generate_series(1, 6) n;
alter table public.expenses enable row level security;
alter table public.calendar_events enable row level security;
alter table public.user_settings enable row level security;
alter table public.social_posts enable row level security;
create policy "Users manage own expenses" on public.expenses for all using (auth.uid() = user_id);
create policy "Users manage own events" on public.calendar_events for all using (auth.uid() = user_id);
create policy "Users manage own settings" on public.user_settings for all using (auth.uid() = user_id);
create policy "Posts are visible to the signed in" on public.social_posts for select to authenticated using (true);
create policy "Users manage own posts" on public.social_posts for all using (auth.uid() = user_id);
