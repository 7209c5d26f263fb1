-- SPDX-License-Identifier: MIT
--
-- Critical database fixes for the PAM backend.
--
-- What it does
--   1. group_trips, group_trip_participants: drops every policy, found in the catalog and not by name, and creates policies that do
--      not recurse. Who may do what:
--        creator      sees, changes and deletes his trip; adds, changes and removes its participants, and alone gives roles
--        organizer    (role organizer, status accepted) adds, changes and removes participants who are not organizers; gives no role
--        participant  (invited or accepted) sees the trip and who else is in it; accepts, declines or leaves: his own row, never its role
--        others       see nothing. Nobody adds himself to a trip, as organizer or otherwise: he is invited.
--   2. admin_users: drops the policies that recurse. Everyone listed reads his own row; admins read all, and write if they could before.
--   3. affiliate_sales, user_wishlists, wishlist_items: creates them, or adds the columns that the backend uses to whatever is there, and
--      relaxes exactly those constraints that stand in the way of the backend's own statements. No row and no column is dropped.
--        sales        buyer and affiliate read their own; only the service writes. The buyer may set thank_you_validated, nothing else.
--        wishlists    everyone manages his own.
--   4. Indexes for the policies and the backend's lookups, updated_at triggers, grants.
--   5. Verifies all of this, by asking the server as anon, authenticated and service_role, and fails if it does not hold.
--
-- How to run it
--   As the owner of the tables who is not subject to their policies: Supabase's "postgres", or a superuser. PostgreSQL 13 to 18.
--   Paste it into Supabase's SQL editor; or psql -f; or psql -1 -f; or use the module wheels.ops.sql_script. It is one DO block, so it is
--   one transaction in all of them. It can be run any number of times; a second run changes nothing.
--   Every change is written into wheels_private.critical_fixes with the statement that takes it back: critical_database_fixes.undo.sql.
--   The backend writes sales with the service key; with the anon key it may not, as then everyone could.
--
-- Helper functions bypass row level security, so they live in a schema that the API does not expose, take no arguments (nobody can ask
-- about someone else), have an empty search_path, and can be executed by those roles only whose policies call them. A policy finds its
-- function without USAGE on the schema; a caller who names the function himself is refused.

do $fix$
declare
  v_shop constant text[] := array['affiliate_sales', 'user_wishlists', 'wishlist_items'];
  v_trips constant text[] := array['group_trips', 'group_trip_participants'];
  v_search_path constant text := current_setting('search_path');
  v_wanted jsonb := '[]';         -- policies: rel, name, cmd, roles, qual, chk
  v_functions jsonb := '[]';      -- name, returns, language, options, body, audience (who may execute it)
  v_writes jsonb;
  v_triggers jsonb := '[]';       -- rel, name, events, cond, function
  v_changes bigint;               -- the journal's last entry when this run began; at the end, how many this run made
  -- The backend's own statements: two rows where it writes many for one person.
  v_probes constant jsonb := jsonb_build_array(
    jsonb_build_object('rel', 'affiliate_sales', 'probe', $$insert into public.affiliate_sales
        (user_id, product_name, product_url, amount, commission, status, category)
      values ('00000000-0000-4000-8000-000000000000', 'x', 'https://example.org/x', 1234.56, 0.5, 'confirmed', 'x'),
             ('00000000-0000-4000-8000-000000000000', 'x', 'https://example.org/x', 1234.56, 0.5, 'confirmed', 'x') returning id, created_at$$),
    jsonb_build_object('rel', 'affiliate_sales', 'probe', $$insert into public.affiliate_sales (session_id, customer_email, amount_total, currency, affiliate_id)
      values ('wheels-ops-probe-1', 'x@example.org', 1000, 'usd', 'affiliate'),
             ('wheels-ops-probe-2', 'x@example.org', 1000, 'usd', 'affiliate') returning id, created_at$$),
    jsonb_build_object('rel', 'affiliate_sales', 'probe', $$insert into public.affiliate_sales
        (digistore24_order_id, digistore24_product_id, user_id, customer_email, product_name, amount, currency, commission_rate, commission, sale_date, status,
         affiliate_network, payment_method, billing_type, pay_sequence_no, is_test_mode, ipn_received_at, address_first_name, address_last_name,
         address_street_name, address_street_number, address_city, address_state, address_zipcode, address_phone_no, updated_at)
      values ('wheels-ops-probe', '1', '00000000-0000-4000-8000-000000000000', 'x@example.org', 'x', 10, 'EUR', 40, 4, now(), 'confirmed', 'digistore24',
        'paypal', 'single_payment', 0, true, now(), 'x', 'x', 'x', '1', 'x', 'x', '1', '1', now())
      on conflict (digistore24_order_id) do update set status = excluded.status, updated_at = excluded.updated_at$$),
    jsonb_build_object('rel', 'affiliate_sales', 'probe',
      $$insert into public.affiliate_sales (digistore24_order_id, status) values ('wheels-ops-probe-1', 'refunded'), ('wheels-ops-probe-2', 'chargeback')$$),
    jsonb_build_object('rel', 'user_wishlists', 'probe', $$insert into public.user_wishlists (user_id, product_id, product_name, price, category, notes)
      values ('00000000-0000-4000-8000-000000000000', 'wheels-ops-probe-1', 'x', 1.5, 'x', 'x'),
             ('00000000-0000-4000-8000-000000000000', 'wheels-ops-probe-2', 'x', 1.5, 'x', 'x') returning id, created_at$$));
  v_audience text;                -- signed-in users, as a policy names them
  v_uid text;                     -- the caller's id
  v_uid_once text;                -- the same in a sub-select, so that it is evaluated once per statement and not per row
  v_repair_trips boolean;
  v_repair_admins boolean;
  v_creator text;
  v_has_role boolean;
  v_has_status boolean;
  v_own text;
  v_mine text;
  v_created text;
  v_organized text;
  v_identities text := '';
  v_text text;
  v_tag text;
  v_type text;
  v_column text;
  v_constraint text;
  v_rel text;
  v_bad text[] := '{}';
  r record;
  s record;
begin
  -- Names are written out below, and the server writes them out in what is kept for the undo.
  perform set_config('search_path', '', true);
  -- Better to fail than to let everyone queue behind us; whoever runs this may have set a limit of his own.
  if current_setting('lock_timeout') = '0' then
    perform set_config('lock_timeout', '10s', true);
  end if;
  -- The lock of wheels.ops.sql_script: one run at a time.
  perform pg_advisory_xact_lock(2003332211);

  ---------------------------------------------------------------------------------------------------------------------------------
  -- Who runs this, and on what
  ---------------------------------------------------------------------------------------------------------------------------------
  for r in
    select c.oid::regclass as rel, c.relkind, c.relowner from pg_class c
    where c.relnamespace = 'public'::regnamespace and c.relname = any (v_trips || v_shop || 'admin_users'::text) and c.relkind not in ('i', 'I')
  loop
    if r.relkind not in ('r', 'p') then
      raise exception '% is not a table', r.rel using hint = 'Something else has taken the name. Rename or drop it, and run this again.';
    elsif not pg_has_role(r.relowner, 'USAGE') then
      raise exception '% belongs to %, not to %', r.rel, pg_get_userbyid(r.relowner), current_user
        using errcode = '42501', hint = 'Run this as the owner of the tables (at Supabase: postgres) or as a superuser.';
    end if;
  end loop;
  v_audience := case when exists (select from pg_roles where rolname = 'authenticated') then 'authenticated' else 'public' end;
  v_repair_trips := to_regclass('public.group_trips') is not null and to_regclass('public.group_trip_participants') is not null;
  if not v_repair_trips then
    raise notice 'skipped: group_trips or group_trip_participants does not exist';
  end if;
  v_repair_admins := exists (select from pg_attribute where attrelid = to_regclass('public.admin_users') and attname = 'user_id' and not attisdropped);
  if not v_repair_admins then
    raise notice 'skipped: there is no admin_users with a column user_id';
  end if;

  ---------------------------------------------------------------------------------------------------------------------------------
  -- The private schema, the journal, and the caller's id
  ---------------------------------------------------------------------------------------------------------------------------------
  if to_regnamespace('wheels_private') is null then
    create schema wheels_private;
    comment on schema wheels_private is 'Helpers of wheels.ops. Not for the API: no role but the owner has USAGE.';
  end if;
  if exists (select from pg_namespace n, aclexplode(n.nspacl) a where n.nspname = 'wheels_private' and a.grantee <> n.nspowner) then
    raise exception 'the schema wheels_private is open to other roles than its owner'
      using hint = 'Its functions bypass row level security. Revoke all on schema wheels_private from those roles.';
  end if;
  if to_regclass('wheels_private.critical_fixes') is null then
    create table wheels_private.critical_fixes (
      id bigint generated always as identity primary key,
      made_at timestamptz not null default clock_timestamp(),
      kind text not null,
      object text not null,
      undo text not null,
      guard text);
    comment on table wheels_private.critical_fixes is 'What critical_database_fixes.sql changed, and how it is taken back';
    comment on column wheels_private.critical_fixes.guard is 'A query: unless it gives true, taking the change back would lose data';
    alter table wheels_private.critical_fixes enable row level security;
    revoke all on wheels_private.critical_fixes from public;
  end if;
  select coalesce(max(id), 0) into v_changes from wheels_private.critical_fixes;

  if to_regprocedure('auth.uid()') is not null then
    v_uid := 'auth.uid()';
  else
    -- Not Supabase: the same claim, read here.
    v_uid := 'wheels_private.uid()';
    v_functions := v_functions || jsonb_build_object('name', 'uid', 'returns', 'uuid', 'language', 'sql', 'options', 'stable', 'audience', v_audience, 'body',
      $body$ select coalesce(nullif(current_setting('request.jwt.claim.sub', true), ''),
                    nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid $body$);
  end if;
  v_uid_once := format('(select %s)', v_uid);

  ---------------------------------------------------------------------------------------------------------------------------------
  -- Tables and columns of the shop
  ---------------------------------------------------------------------------------------------------------------------------------
  foreach v_rel in array v_shop loop
    if to_regclass('public.' || v_rel) is null then
      -- No foreign key to auth.users: making one locks that table against sign-ins, and a sale outlives the account.
      execute format('create table public.%I (id uuid primary key default gen_random_uuid())', v_rel);
      insert into wheels_private.critical_fixes (kind, object, undo, guard)
        values ('table', 'public.' || v_rel, format('drop table if exists public.%I', v_rel), format('select not exists (select from public.%I)', v_rel));
    end if;
  end loop;

  for r in
    select w.rel, w.col, w.def, coalesce(w.type, (
             select format_type(a.atttypid, a.atttypmod) from pg_attribute a
             where a.attrelid = 'public.user_wishlists'::regclass and a.attname = 'id' and not a.attisdropped), 'uuid') as type
    from (values
      ('affiliate_sales', 'id', 'uuid', 'gen_random_uuid()'), ('user_wishlists', 'id', 'uuid', 'gen_random_uuid()'),
      -- what track_purchase writes and the account pages read
      ('affiliate_sales', 'user_id', 'uuid', null), ('affiliate_sales', 'product_name', 'text', null),
      ('affiliate_sales', 'product_url', 'text', null), ('affiliate_sales', 'amount', 'numeric', null),
      ('affiliate_sales', 'commission', 'numeric', null), ('affiliate_sales', 'status', 'text', $$'pending'$$),
      ('affiliate_sales', 'category', 'text', null),
      -- Stripe: amount_total is in cents, affiliate_id is whatever the link carried
      ('affiliate_sales', 'session_id', 'text', null), ('affiliate_sales', 'customer_email', 'text', null),
      ('affiliate_sales', 'amount_total', 'bigint', null), ('affiliate_sales', 'currency', 'text', null),
      ('affiliate_sales', 'affiliate_id', 'text', null),
      -- Digistore24
      ('affiliate_sales', 'digistore24_order_id', 'text', null), ('affiliate_sales', 'digistore24_product_id', 'text', null),
      ('affiliate_sales', 'commission_rate', 'numeric', null), ('affiliate_sales', 'sale_date', 'timestamptz', null),
      ('affiliate_sales', 'affiliate_network', 'text', null), ('affiliate_sales', 'payment_method', 'text', null),
      ('affiliate_sales', 'billing_type', 'text', null), ('affiliate_sales', 'pay_sequence_no', 'integer', null),
      ('affiliate_sales', 'is_test_mode', 'boolean', 'false'), ('affiliate_sales', 'ipn_received_at', 'timestamptz', null),
      ('affiliate_sales', 'address_first_name', 'text', null), ('affiliate_sales', 'address_last_name', 'text', null),
      ('affiliate_sales', 'address_street_name', 'text', null), ('affiliate_sales', 'address_street_number', 'text', null),
      ('affiliate_sales', 'address_city', 'text', null), ('affiliate_sales', 'address_state', 'text', null),
      ('affiliate_sales', 'address_zipcode', 'text', null), ('affiliate_sales', 'address_phone_no', 'text', null),
      ('affiliate_sales', 'thank_you_validated', 'boolean', 'false'),
      ('affiliate_sales', 'created_at', 'timestamptz', 'now()'), ('affiliate_sales', 'updated_at', 'timestamptz', 'now()'),
      ('user_wishlists', 'user_id', 'uuid', null), ('user_wishlists', 'product_id', 'text', null),
      ('user_wishlists', 'product_name', 'text', null), ('user_wishlists', 'price', 'numeric', null),
      ('user_wishlists', 'category', 'text', null), ('user_wishlists', 'notes', 'text', null),
      ('user_wishlists', 'created_at', 'timestamptz', 'now()'), ('user_wishlists', 'updated_at', 'timestamptz', 'now()'),
      ('wishlist_items', 'wishlist_id', null, null), ('wishlist_items', 'product_id', 'text', null),
      ('wishlist_items', 'product_name', 'text', null), ('wishlist_items', 'price', 'numeric', null),
      ('wishlist_items', 'category', 'text', null), ('wishlist_items', 'notes', 'text', null),
      ('wishlist_items', 'created_at', 'timestamptz', 'now()'), ('wishlist_items', 'updated_at', 'timestamptz', 'now()')
    ) as w(rel, col, type, def)
    where not exists (select from pg_attribute a where a.attrelid = to_regclass('public.' || w.rel) and a.attname = w.col and not a.attisdropped)
  loop
    -- The default comes second: rows that are there keep "not known", and the column can be taken back while nothing is in it. An id
    -- every row must have, and it can be made up again.
    execute format('alter table public.%I add column %I %s', r.rel, r.col, r.type) || case r.col when 'id' then ' default ' || r.def else '' end;
    if r.def is not null and r.col <> 'id' then
      execute format('alter table public.%I alter column %I set default %s', r.rel, r.col, r.def);
    end if;
    if r.col = 'wishlist_id' and exists (
         select from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
         where i.indrelid = 'public.user_wishlists'::regclass and i.indisprimary and i.indnkeyatts = 1 and a.attname = 'id') then
      alter table public.wishlist_items add foreign key (wishlist_id) references public.user_wishlists (id) on delete cascade;
    end if;
    if not exists (select from wheels_private.critical_fixes where kind = 'table' and object = 'public.' || r.rel) then
      insert into wheels_private.critical_fixes (kind, object, undo, guard)
        values ('column', format('public.%I.%I', r.rel, r.col), format('alter table public.%I drop column if exists %I', r.rel, r.col),
                case when r.col <> 'id' then format('select not exists (select from public.%I where %I is not null)', r.rel, r.col) end);
    end if;
  end loop;

  ---------------------------------------------------------------------------------------------------------------------------------
  -- The policies that shall be. Columns of type uuid are compared as they are, so that an index serves; others as text.
  ---------------------------------------------------------------------------------------------------------------------------------
  if v_repair_trips then
    select min(a.attname::text) filter (where a.attname in ('created_by', 'creator_id')), bool_or(a.attname = 'id') into v_creator, v_has_role
      from pg_attribute a where a.attrelid = 'public.group_trips'::regclass and a.attnum > 0 and not a.attisdropped;
    select bool_and(w.name = any (array(select attname::text from pg_attribute where attrelid = 'public.group_trip_participants'::regclass and not attisdropped)))
      into v_has_status from unnest(array['trip_id', 'user_id']) as w(name);
    if v_creator is null or not v_has_role or not v_has_status then
      raise exception 'group_trips and group_trip_participants do not say who created a trip and who takes part in it'
        using hint = 'Needed are group_trips(id, created_by or creator_id) and group_trip_participants(trip_id, user_id). wheels.ops.rls_repair repairs policies of any table.';
    end if;
    select bool_or(a.attname = 'role'), bool_or(a.attname = 'status') into v_has_role, v_has_status
      from pg_attribute a where a.attrelid = 'public.group_trip_participants'::regclass and a.attnum > 0 and not a.attisdropped;

    for r in
      select case when a.attname = 'trip_id' then 'my_trips' else 'my_created_trips' end as name, format_type(a.atttypid, a.atttypmod) as type
      from pg_attribute a
      where a.attrelid = 'public.group_trips'::regclass and a.attname = 'id' or a.attrelid = 'public.group_trip_participants'::regclass and a.attname = 'trip_id'
    loop
      v_type := case r.name when 'my_trips' then r.type else v_type end;
      v_functions := v_functions || jsonb_build_object('name', r.name, 'returns', 'setof ' || r.type, 'language', 'sql', 'options', 'stable security definer',
        'audience', v_audience, 'body', case r.name
          when 'my_created_trips' then format(' select t.id from public.group_trips t where t.%I::text = (select %s::text) ', v_creator, v_uid)
          else format(' select p.trip_id from public.group_trip_participants p where p.user_id::text = (select %s::text)%s ', v_uid,
                      case when v_has_status then ' and p.status::text is distinct from ''declined''' else '' end) end);
    end loop;
    if v_has_role then
      v_functions := v_functions || jsonb_build_object('name', 'my_organized_trips', 'returns', 'setof ' || v_type, 'language', 'sql',
        'options', 'stable security definer', 'audience', v_audience, 'body',
        format(' select p.trip_id from public.group_trip_participants p where p.user_id::text = (select %s::text) and p.role::text = ''organizer''%s ', v_uid,
               case when v_has_status then ' and p.status::text = ''accepted''' else '' end));
    end if;
    -- A policy sees the new row only, so what must not change is guarded by a trigger, which sees both rows. It fires for those to whom
    -- row level security applies: the service and the owner are not restrained.
    v_functions := v_functions || jsonb_build_object('name', 'guard_participant', 'returns', 'trigger', 'language', 'plpgsql', 'options', 'security definer',
      'body', format($body$
begin
  if tg_op = 'UPDATE' and (new.trip_id is distinct from old.trip_id or new.user_id is distinct from old.user_id) then
    raise exception 'a participant cannot be moved to another trip or become another person' using errcode = '42501';
  end if;
  if exists (select from public.group_trips t where t.id = new.trip_id and t.%I::text = %s::text) then
    return new;
  end if;
  %sreturn new;
end $body$, v_creator, v_uid, case when v_has_role then $body$if tg_op = 'INSERT' and coalesce(new.role::text, '') not in ('participant', 'member')
     or tg_op = 'UPDATE' and new.role is distinct from old.role then
    raise exception 'only the creator of a trip gives roles' using errcode = '42501';
  end if;
  $body$ else '' end));
    v_triggers := v_triggers || jsonb_build_object('rel', 'group_trip_participants', 'name', 'wheels_guard_participant', 'events', 'insert or update',
      'cond', $$when (pg_catalog.row_security_active('public.group_trip_participants'::pg_catalog.regclass) and current_user <> 'service_role')$$,
      'function', 'guard_participant');

    select case when a.atttypid = 'uuid'::regtype then format('%I = %s', v_creator, v_uid_once) else format('%I::text = (select %s::text)', v_creator, v_uid) end
      into v_own from pg_attribute a where a.attrelid = 'public.group_trips'::regclass and a.attname = v_creator;
    select case when a.atttypid = 'uuid'::regtype then format('user_id = %s', v_uid_once) else format('user_id::text = (select %s::text)', v_uid) end
      into v_mine from pg_attribute a where a.attrelid = 'public.group_trip_participants'::regclass and a.attname = 'user_id';
    -- = any (array(...)) is evaluated once and served by the index on trip_id.
    v_created := 'trip_id = any (array(select wheels_private.my_created_trips()))';
    v_organized := case when v_has_role
      then ' or (trip_id = any (array(select wheels_private.my_organized_trips())) and role::text in (''participant'', ''member''))' else '' end;
    v_wanted := v_wanted || jsonb_build_array(
      jsonb_build_object('rel', 'group_trips', 'cmd', 'select', 'name', 'trips: creator and participants see',
        'qual', v_own || ' or id = any (array(select wheels_private.my_trips()))'),
      jsonb_build_object('rel', 'group_trips', 'cmd', 'insert', 'name', 'trips: everyone creates his own', 'chk', v_own),
      jsonb_build_object('rel', 'group_trips', 'cmd', 'update', 'name', 'trips: creator changes', 'qual', v_own, 'chk', v_own),
      jsonb_build_object('rel', 'group_trips', 'cmd', 'delete', 'name', 'trips: creator deletes', 'qual', v_own),
      jsonb_build_object('rel', 'group_trip_participants', 'cmd', 'select', 'name', 'participants: fellow travellers see',
        'qual', concat_ws(' or ', v_mine, 'trip_id = any (array(select wheels_private.my_trips()))', v_created)),
      jsonb_build_object('rel', 'group_trip_participants', 'cmd', 'insert', 'name', 'participants: creator and organizers invite', 'chk', v_created || v_organized),
      jsonb_build_object('rel', 'group_trip_participants', 'cmd', 'update', 'name', 'participants: answer, or are managed',
        'qual', concat_ws(' or ', v_mine, v_created) || v_organized, 'chk', concat_ws(' or ', v_mine, v_created) || v_organized),
      jsonb_build_object('rel', 'group_trip_participants', 'cmd', 'delete', 'name', 'participants: leave, or are removed',
        'qual', concat_ws(' or ', v_mine, v_created) || v_organized));
  end if;

  -- Profiles. Where an id of the shop's tables is (or, before an earlier run, was) the key of a profile that names its user, both ids are
  -- his. A profile whose key is another account's id does not count: whoever may insert profiles could otherwise become anyone.
  for r in
    select k.conname, k.conrelid::regclass as rel, k.confrelid::regclass::text as profile, f.attname as key, o.attname as col, pg_get_constraintdef(k.oid) as def,
           exists (select from pg_attribute x where x.attrelid = k.confrelid and x.attname = 'user_id' and not x.attisdropped)
             and f.attname <> 'user_id' and k.confrelid::regclass::text not in ('auth.users', 'public.user_wishlists') as is_profile,
           o.atttypid not in ('text'::regtype, 'varchar'::regtype) as is_typed
    from pg_constraint k
    join pg_attribute o on o.attrelid = k.conrelid and o.attnum = k.conkey[1]
    join pg_attribute f on f.attrelid = k.confrelid and f.attnum = k.confkey[1]
    where k.contype = 'f' and k.conrelid in ('public.affiliate_sales'::regclass, 'public.user_wishlists'::regclass) and cardinality(k.conkey) = 1
      and o.attname in ('user_id', 'seller_id', 'affiliate_id')
  loop
    if r.is_profile and not exists (select from wheels_private.critical_fixes where kind = 'profile' and object = format('%s.%I', r.profile, r.key)) then
      insert into wheels_private.critical_fixes (kind, object, undo)
        values ('profile', format('%s.%I', r.profile, r.key),
          format('select p.%I::text from %s p where p.user_id::text = (select %s::text)', r.key, r.profile, v_uid)
          || case when to_regclass('auth.users') is not null and has_table_privilege(to_regclass('auth.users'), 'SELECT')
             then format(' and not exists (select from auth.users u where u.id::text = p.%I::text and u.id::text <> p.user_id::text)', r.key) else '' end);
    end if;
    -- The backend writes the account's id, and Stripe whatever text the link carried: neither is a profile's key.
    if r.col = 'user_id' and r.is_profile or r.col = 'affiliate_id' then
      execute format('alter table %s drop constraint %I', r.rel, r.conname);
      insert into wheels_private.critical_fixes (kind, object, undo)
        values ('constraint', format('%I on %s', r.conname, r.rel), format('alter table %s add constraint %I %s', r.rel, r.conname, r.def));
    end if;
  end loop;
  select string_agg(undo, ' union ' order by object) into v_identities from wheels_private.critical_fixes where kind = 'profile';
  if v_identities is not null then
    v_functions := v_functions || jsonb_build_object('name', 'my_profiles', 'returns', 'setof text', 'language', 'sql', 'options', 'stable security definer',
      'audience', v_audience, 'body', ' ' || v_identities || ' ');
  end if;

  select string_agg(case when a.atttypid = 'uuid'::regtype and a.attname <> 'affiliate_id' then format('%I = %s', a.attname, v_uid_once)
                         else format('%I::text = (select %s::text)', a.attname, v_uid) end
                    || case when v_identities is null then '' else format(' or %I::text = any (array(select wheels_private.my_profiles()))', a.attname) end,
                    ' or ' order by a.attname)
    into v_text from pg_attribute a
    where a.attrelid = 'public.affiliate_sales'::regclass and a.attname in ('user_id', 'affiliate_id', 'seller_id') and not a.attisdropped;
  select case when a.atttypid = 'uuid'::regtype then format('user_id = %s', v_uid_once) else format('user_id::text = (select %s::text)', v_uid) end
    into v_mine from pg_attribute a where a.attrelid = 'public.affiliate_sales'::regclass and a.attname = 'user_id';
  select case when a.atttypid = 'uuid'::regtype then format('user_id = %s', v_uid_once) else format('user_id::text = (select %s::text)', v_uid) end
         || case when v_identities is null then '' else ' or user_id::text = any (array(select wheels_private.my_profiles()))' end
    into v_own from pg_attribute a where a.attrelid = 'public.user_wishlists'::regclass and a.attname = 'user_id';
  v_wanted := v_wanted || jsonb_build_array(
    jsonb_build_object('rel', 'affiliate_sales', 'cmd', 'select', 'name', 'sales: buyer and affiliate see', 'qual', v_text),
    jsonb_build_object('rel', 'affiliate_sales', 'cmd', 'update', 'name', 'sales: buyer confirms', 'qual', v_mine, 'chk', v_mine),
    jsonb_build_object('rel', 'user_wishlists', 'cmd', 'all', 'name', 'wishlists: everyone manages his own', 'qual', v_own, 'chk', v_own));
  -- Keys of different types are compared as text.
  select format(case when count(distinct a.atttypid) > 1 then 'wishlist_id::text in (select w.id::text from public.user_wishlists w where %s)'
                     else 'wishlist_id in (select w.id from public.user_wishlists w where %s)' end, replace(v_own, 'user_id', 'w.user_id'))
    into v_text from pg_attribute a
    where a.attrelid = 'public.wishlist_items'::regclass and a.attname = 'wishlist_id' or a.attrelid = 'public.user_wishlists'::regclass and a.attname = 'id';
  -- Items that are on no list, but name their user: his, as they were. Nobody puts one on a list of another in this way.
  select coalesce(max(v_text || ' or wishlist_id is null and ' || case when a.atttypid = 'uuid'::regtype then format('user_id = %s', v_uid_once)
                                                                       else format('user_id::text = (select %s::text)', v_uid) end), v_text)
    into v_text from pg_attribute a where a.attrelid = 'public.wishlist_items'::regclass and a.attname = 'user_id' and not a.attisdropped;
  v_wanted := v_wanted || jsonb_build_object('rel', 'wishlist_items', 'cmd', 'all', 'name', 'wishlist items: everyone manages his own', 'qual', v_text, 'chk', v_text);
  -- Column grants already keep users from the amounts; this holds even after someone grants everything to everyone again.
  v_functions := v_functions || jsonb_build_object('name', 'guard_sale', 'returns', 'trigger', 'language', 'plpgsql', 'options', 'security definer', 'body', $body$
declare
  -- Generated columns are not computed yet when a trigger runs before the change.
  free constant text[] := array(select a.attname::text from pg_catalog.pg_attribute a where a.attrelid = tg_relid and a.attgenerated <> '')
                          || array['thank_you_validated', 'updated_at'];
begin
  if to_jsonb(new) - free is distinct from to_jsonb(old) - free then
    raise exception 'a sale is changed by the service only' using errcode = '42501';
  end if;
  return new;
end $body$);
  v_functions := v_functions || jsonb_build_object('name', 'touch_updated_at', 'returns', 'trigger', 'language', 'plpgsql', 'options', '', 'body', $body$
begin
  new.updated_at := now();
  return new;
end $body$);
  v_triggers := v_triggers || jsonb_build_object('rel', 'affiliate_sales', 'name', 'wheels_guard_sale', 'events', 'update',
    'cond', $$when (pg_catalog.row_security_active('public.affiliate_sales'::pg_catalog.regclass) and current_user <> 'service_role')$$, 'function', 'guard_sale');
  foreach v_rel in array v_shop loop
    -- A trigger of the same purpose may be there already, under whatever name.
    if not exists (select from pg_trigger g join pg_proc f on f.oid = g.tgfoid
                   where g.tgrelid = ('public.' || v_rel)::regclass and not g.tgisinternal and g.tgname <> 'wheels_touch_updated_at' and f.prosrc ~* 'new\.updated_at') then
      v_triggers := v_triggers || jsonb_build_object('rel', v_rel, 'name', 'wheels_touch_updated_at', 'events', 'update', 'cond', '', 'function', 'touch_updated_at');
    end if;
  end loop;

  if v_repair_admins then
    select coalesce(string_agg(case a.attname
             when 'role' then ' and lower(u.role::text) in (''admin'', ''super_admin'', ''superadmin'', ''super'', ''owner'')'
             when 'status' then ' and lower(u.status::text) = ''active''' end, '' order by a.attname), '') into v_text
      from pg_attribute a where a.attrelid = 'public.admin_users'::regclass and a.attname in ('role', 'status') and not a.attisdropped;
    v_functions := v_functions || jsonb_build_object('name', 'is_admin', 'returns', 'boolean', 'language', 'sql', 'options', 'stable security definer',
      'audience', v_audience, 'body', format(' select exists (select from public.admin_users u where u.user_id::text = (select %s::text)%s) ', v_uid, v_text));
    select case when a.atttypid = 'uuid'::regtype then format('user_id = %s', v_uid_once) else format('user_id::text = (select %s::text)', v_uid) end
      into v_mine from pg_attribute a where a.attrelid = 'public.admin_users'::regclass and a.attname = 'user_id';
    v_wanted := v_wanted || jsonb_build_object('rel', 'admin_users', 'cmd', 'select', 'name', 'admins: own row, all for admins',
      'qual', v_mine || ' or (select wheels_private.is_admin())');
    -- Admins who could write through a policy that recursed can write again; where nobody could, nobody can.
    v_writes := $$[{"rel": "admin_users", "cmd": "insert", "name": "admins: add", "chk": "(select wheels_private.is_admin())"},
      {"rel": "admin_users", "cmd": "update", "name": "admins: change", "qual": "(select wheels_private.is_admin())", "chk": "(select wheels_private.is_admin())"},
      {"rel": "admin_users", "cmd": "delete", "name": "admins: remove", "qual": "(select wheels_private.is_admin())"}]$$;
    if exists (select from wheels_private.critical_fixes where kind = 'admins wrote') then
      v_wanted := v_wanted || v_writes;
    end if;
  end if;
  if exists (select from pg_roles where rolname = 'service_role') then
    -- At Supabase the role bypasses row level security; elsewhere it may not.
    select v_wanted || jsonb_agg(jsonb_build_object('rel', t.rel, 'cmd', 'all', 'name', 'service: everything', 'roles', 'service_role', 'qual', 'true', 'chk', 'true'))
      into v_wanted from unnest(v_shop || case when v_repair_trips then v_trips else '{}' end) as t(rel);
  end if;

  ---------------------------------------------------------------------------------------------------------------------------------
  -- Old policies go. Of admin_users only those that recurse: that read it again, directly, through the policies of what they read, or
  -- through a view or function that runs as its caller.
  ---------------------------------------------------------------------------------------------------------------------------------
  for r in
    with recursive reads as (
      select q.oid as policy, q.polrelid, m[1]::oid as rel
      from pg_policy q, regexp_matches(coalesce(q.polqual::text, '') || coalesce(q.polwithcheck::text, ''), ':relid (\d+)', 'g') m
    ), reach as (
      select e.policy, e.rel from reads e where e.polrelid = to_regclass('public.admin_users')
      union
      select h.policy, n.rel from reach h cross join lateral (
        select e.rel from reads e where e.polrelid = h.rel
        union all
        -- A view that is read as its caller. One that is read as its owner ends the circle.
        select d.refobjid from pg_class c join pg_rewrite w on w.ev_class = c.oid
          join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = w.oid and d.refclassid = 'pg_class'::regclass and d.refobjid <> c.oid
        where c.oid = h.rel and c.relkind = 'v'
          and exists (select from pg_options_to_table(c.reloptions) o where o.option_name = 'security_invoker' and o.option_value::boolean)
      ) n
    )
    select q.oid, q.polname, q.polrelid, q.polrelid::regclass as rel, q.polcmd, q.polpermissive,
           format('create policy %I on %s as %s for %s to %s', q.polname, q.polrelid::regclass,
                  case when q.polpermissive then 'permissive' else 'restrictive' end,
                  case q.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end,
                  (select string_agg(case o when 0 then 'public' else quote_ident(pg_get_userbyid(o)) end, ', ') from unnest(q.polroles) o))
           || coalesce(' using (' || pg_get_expr(q.polqual, q.polrelid) || ')', '')
           || coalesce(' with check (' || pg_get_expr(q.polwithcheck, q.polrelid) || ')', '') as definition,
           obj_description(q.oid, 'pg_policy') as comment,
           'wheels.ops ' || md5(concat_ws('|', w.cmd, w.roles, w.qual, w.chk)) || ' '
           || md5(concat_ws('|', q.polcmd, q.polpermissive, q.polroles, pg_get_expr(q.polqual, q.polrelid), pg_get_expr(q.polwithcheck, q.polrelid))) as tag
    from pg_policy q
    join pg_class c on c.oid = q.polrelid and c.relnamespace = 'public'::regnamespace
    left join jsonb_to_recordset(v_wanted) as w(rel text, name text, cmd text, roles text, qual text, chk text) on w.rel = c.relname and w.name = q.polname
    where c.relname = any (v_shop) or v_repair_trips and c.relname = any (v_trips)
       or v_repair_admins and c.relname = 'admin_users' and (
            w.name is not null or obj_description(q.oid, 'pg_policy') like 'wheels.ops %'
            or exists (select from reach h where h.policy = q.oid and h.rel = q.polrelid)
            or exists (select from pg_depend d join pg_proc f on f.oid = d.refobjid
                       where d.classid = 'pg_policy'::regclass and d.objid = q.oid and d.refclassid = 'pg_proc'::regclass
                         and not f.prosecdef and f.prosrc ~* '\madmin_users\M'))
    order by c.relname, q.polname
  loop
    continue when r.comment is not distinct from r.tag;
    if r.rel = to_regclass('public.admin_users') and r.polpermissive and r.polcmd <> 'r'
       and not exists (select from wheels_private.critical_fixes where kind = 'admins wrote') then
      insert into wheels_private.critical_fixes (kind, object, undo) values ('admins wrote', 'public.admin_users', '');
      v_wanted := v_wanted || v_writes;
    end if;
    execute format('drop policy %I on %s', r.polname, r.rel);
    insert into wheels_private.critical_fixes (kind, object, undo) values ('policy dropped', format('%I on %s', r.polname, r.rel), r.definition);
    if r.comment is not null then
      update wheels_private.critical_fixes set undo = undo || format('; comment on policy %I on %s is %L', r.polname, r.rel, r.comment)
        where id = (select max(id) from wheels_private.critical_fixes);
    end if;
  end loop;
  ---------------------------------------------------------------------------------------------------------------------------------
  -- What stands in the way of the backend's statements
  ---------------------------------------------------------------------------------------------------------------------------------
  -- Columns that must take text (as long as it comes), or fractions and percentages, and columns that the table computes but the backend
  -- writes. What the server would not change together with the column is dropped and made again, with all that hangs on it: views, columns
  -- computed from it (the same values, as they come from the same expression), indexes and checks that name the old type.
  for r in
    select x.*, case when x.is_number then case when x.integral or x.decimals and (x.digits < x.size or x.scale < 2) then 'numeric' end
                     when x.typcategory <> 'S' or x.length < x.size then 'text' end as wanted
    from (
      select c.oid::regclass as rel, c.oid, a.attname, a.attnum, a.attgenerated, format_type(a.atttypid, a.atttypmod) as type, y.typcategory, w.size,
             w.is_number, a.atttypid in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype) as integral,
             a.atttypid = 'numeric'::regtype and a.atttypmod > 0 as decimals,
             -- numeric(p, s) is kept as ((p << 16) | s) + 4, varchar(n) as n + 4
             ((a.atttypmod - 4) >> 16) - ((a.atttypmod - 4) & 2047) as digits, (a.atttypmod - 4) & 2047 as scale, nullif(a.atttypmod, -1) - 4 as length,
             (select pg_get_expr(d.adbin, d.adrelid) from pg_attrdef d where d.adrelid = c.oid and d.adnum = a.attnum) as def
      from (values
        ('affiliate_sales', 'commission', true, 6), ('affiliate_sales', 'amount', true, 6), ('affiliate_sales', 'commission_rate', true, 3),
        ('affiliate_sales', 'product_name', false, 255), ('affiliate_sales', 'product_url', false, 2000), ('affiliate_sales', 'status', false, 10),
        ('affiliate_sales', 'category', false, 50), ('affiliate_sales', 'session_id', false, 100), ('affiliate_sales', 'customer_email', false, 254),
        ('affiliate_sales', 'currency', false, 3), ('affiliate_sales', 'affiliate_id', false, 100),
        ('affiliate_sales', 'digistore24_order_id', false, 40), ('affiliate_sales', 'digistore24_product_id', false, 40),
        ('affiliate_sales', 'affiliate_network', false, 40), ('affiliate_sales', 'payment_method', false, 40), ('affiliate_sales', 'billing_type', false, 40),
        ('affiliate_sales', 'address_first_name', false, 100), ('affiliate_sales', 'address_last_name', false, 100),
        ('affiliate_sales', 'address_street_name', false, 100), ('affiliate_sales', 'address_street_number', false, 20),
        ('affiliate_sales', 'address_city', false, 100), ('affiliate_sales', 'address_state', false, 100),
        ('affiliate_sales', 'address_zipcode', false, 20), ('affiliate_sales', 'address_phone_no', false, 40),
        ('user_wishlists', 'product_id', false, 100), ('user_wishlists', 'product_name', false, 255), ('user_wishlists', 'category', false, 50),
        ('user_wishlists', 'notes', false, 1000), ('user_wishlists', 'price', true, 6),
        -- in cents, so that no type is too narrow; it may be computed, though
        ('affiliate_sales', 'amount_total', null, 0)) as w(rel, col, is_number, size)
      join pg_class c on c.relnamespace = 'public'::regnamespace and c.relname = w.rel
      join pg_attribute a on a.attrelid = c.oid and a.attname = w.col and not a.attisdropped
      join pg_type y on y.oid = a.atttypid
    ) x
    order by x.attgenerated = '', x.rel::text, x.attnum
  loop
    if r.attgenerated <> '' then
      execute case r.attgenerated when 's' then format('alter table %s alter column %I drop expression', r.rel, r.attname)
        else format('alter table %s drop column %I; alter table %1$s add column %2$I %s; update %1$s set %2$I = %s', r.rel, r.attname, r.type, r.def) end;
      -- There is no way back but a new column, which is the same only while every value is what the expression gives.
      insert into wheels_private.critical_fixes (kind, object, undo, guard)
        values ('expression', format('%s.%I', r.rel, r.attname),
                format('alter table %s drop column %I; alter table %1$s add column %2$I %s generated always as (%s) %s', r.rel, r.attname, r.type, r.def,
                       case r.attgenerated when 's' then 'stored' else 'virtual' end),
                format('select not exists (select from %s where %I is distinct from (%s))', r.rel, r.attname, r.def));
    end if;
    continue when r.wanted is null or r.is_number is null;
    -- A key of another table that is no text cannot refer to it any more: the backend's ids are its own.
    for s in
      select k.conname, pg_get_constraintdef(k.oid) as def from pg_constraint k
      where r.wanted = 'text' and r.typcategory <> 'S' and k.contype = 'f' and k.conrelid = r.oid and r.attnum = any (k.conkey)
    loop
      execute format('alter table %s drop constraint %I', r.rel, s.conname);
      insert into wheels_private.critical_fixes (kind, object, undo)
        values ('constraint', format('%I on %s', s.conname, r.rel), format('alter table %s add constraint %I %s', r.rel, s.conname, s.def));
    end loop;
    with recursive computed as (
      select a.attnum, a.attname, format_type(a.atttypid, a.atttypmod) as type, pg_get_expr(d.adbin, d.adrelid) as expression
      from pg_attribute a join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
      where a.attrelid = r.oid and a.attgenerated = 's' and not a.attisdropped and exists (
        select from pg_depend e where e.refclassid = 'pg_class'::regclass and e.refobjid = r.oid and e.refobjsubid = r.attnum
          -- until PostgreSQL 14 the column itself depends, since then its expression
          and (e.classid = 'pg_attrdef'::regclass and e.objid = d.oid or e.classid = 'pg_class'::regclass and e.objid = r.oid and e.objsubid = a.attnum))
    ), touched as (
      select r.attnum as attnum union all select g.attnum from computed g
    ), reading as (
      select w.ev_class as oid, 1 as depth from pg_depend d join pg_rewrite w on w.oid = d.objid
      where d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = r.oid and w.ev_class <> r.oid
        and d.refobjsubid in (select t.attnum from touched t)
      union
      select w.ev_class, v.depth + 1 from reading v join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = v.oid
        join pg_rewrite w on w.oid = d.objid where d.classid = 'pg_rewrite'::regclass and w.ev_class <> v.oid
    ), views as (
      select c.oid, c.oid::regclass as name, v.depth,
             format('create view %s%s as %s', c.oid::regclass, ' with (' || array_to_string(c.reloptions, ', ') || ')', rtrim(pg_get_viewdef(c.oid), ';'))
             || format('; alter view %s owner to %I', c.oid::regclass, pg_get_userbyid(c.relowner))
             -- Default privileges may let others into a new view than into the old one.
             || coalesce((select string_agg(format('; revoke all on %s from %s', c.oid::regclass, g.name), '' order by g.name) from (
                  select distinct case x.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(x.grantee)) end as name
                  from pg_default_acl d, aclexplode(d.defaclacl) x where d.defaclobjtype = 'r') g), '')
             || coalesce((select string_agg(format('; grant %s on %s to %s', x.privilege_type, c.oid::regclass,
                                                   case x.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(x.grantee)) end)
                                            || case when x.is_grantable then ' with grant option' else '' end, '' order by x.grantee, x.privilege_type)
                          from aclexplode(c.relacl) x), '')
             || coalesce(format('; comment on view %s is %L', c.oid::regclass, obj_description(c.oid, 'pg_class')), '') as definition,
             c.relkind <> 'v' or exists (select from pg_trigger g where g.tgrelid = c.oid)
               or exists (select from pg_rewrite w where w.ev_class = c.oid and w.rulename <> '_RETURN')
               or exists (select from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and (a.attacl is not null or a.atthasdef)) as is_special
      from (select oid, max(depth) as depth from reading group by oid) v join pg_class c on c.oid = v.oid
    ), indexes as (
      select i.indexrelid::regclass as name, pg_get_indexdef(i.indexrelid) as def, exists (select from computed g where g.attnum = any (i.indkey::smallint[])) as gone
      from pg_index i
      where i.indrelid = r.oid and not exists (select from pg_constraint k where k.conindid = i.indexrelid)
        and (exists (select from computed g where g.attnum = any (i.indkey::smallint[]))
             or r.typcategory <> 'S' and r.wanted = 'text' and position('::' || r.type in pg_get_indexdef(i.indexrelid)) > 0)
    ), checks as (
      select k.conname, pg_get_constraintdef(k.oid) as def, exists (select from computed g where g.attnum = any (k.conkey)) as gone
      from pg_constraint k
      where k.conrelid = r.oid and (
        exists (select from computed g where g.attnum = any (k.conkey))
        or r.typcategory <> 'S' and r.wanted = 'text' and k.contype = 'c' and position('::' || r.type in pg_get_constraintdef(k.oid)) > 0)
    )
    select coalesce((select string_agg(format('drop view %s; ', v.name), '' order by v.depth desc, v.oid) from views v), '')
           || coalesce((select string_agg(format('drop index %s; ', i.name), '') from indexes i where not i.gone), '')
           || coalesce((select string_agg(format('alter table %s drop constraint %I; ', r.rel, k.conname), '') from checks k where not k.gone), '')
           || coalesce((select string_agg(format('alter table %s drop column %I; ', r.rel, g.attname), '' order by g.attnum) from computed g), ''),
           coalesce((select string_agg(format('; alter table %s add column %I %s generated always as (%s) stored', r.rel, g.attname, g.type, g.expression), ''
                                       order by g.attnum) from computed g), '')
           || coalesce((select string_agg('; ' || i.def, '') from indexes i), '')
           || coalesce((select string_agg(format('; alter table %s add constraint %I %s', r.rel, k.conname, k.def), '') from checks k), '')
           || coalesce((select string_agg('; ' || v.definition, '' order by v.depth, v.oid) from views v), ''),
           (select string_agg(v.name::text, ', ') from views v where v.is_special)
      into v_text, v_type, v_constraint;
    if v_constraint is not null then
      raise exception '%.% must become %, and % reads it', r.rel, r.attname, r.wanted, v_constraint
        using hint = 'It cannot be made again as it is (a materialized view, or one with triggers, rules or column privileges): drop it, run this, make it again.';
    end if;
    begin
      if r.wanted = 'text' and r.typcategory <> 'S' then
        execute v_text || case when r.def is null or r.attgenerated <> '' then '' else format('alter table %s alter column %I drop default; ', r.rel, r.attname) end
          || format('alter table %s alter column %I type text using %2$I::text', r.rel, r.attname)
          || case when r.def is null or r.attgenerated <> '' then '' else format('; alter table %s alter column %I set default (%s)::text', r.rel, r.attname, r.def) end
          || replace(v_type, '::' || r.type, '::text');
      else
        execute v_text || format('alter table %s alter column %I type %s', r.rel, r.attname, r.wanted) || v_type;
      end if;
    exception when feature_not_supported or undefined_function or datatype_mismatch or dependent_objects_still_exist then
      raise exception '%.% must become %, and something else depends on it: %', r.rel, r.attname, r.wanted, sqlerrm
        using hint = 'Drop what is named there (a policy of another table, a view, a trigger), run this, and make it again to fit the new type.';
    end;
    insert into wheels_private.critical_fixes (kind, object, undo, guard)
      values ('type', format('%s.%I', r.rel, r.attname),
              v_text || case when r.wanted = 'text' and r.typcategory <> 'S' and r.def is not null and r.attgenerated = ''
                        then format('alter table %s alter column %I drop default; ', r.rel, r.attname) else '' end
              || format('alter table %s alter column %I type %s', r.rel, r.attname, r.type)
              || case when r.wanted = 'text' and r.typcategory <> 'S' then format(' using %I::%s', r.attname, r.type) else '' end
              || case when r.wanted = 'text' and r.typcategory <> 'S' and r.def is not null and r.attgenerated = ''
                 then format('; alter table %s alter column %I set default %s', r.rel, r.attname, r.def) else '' end
              || v_type,
              -- Nothing is rounded or cut off on the way back.
              format(case when r.is_number then 'select not exists (select from %s where %I is distinct from %2$I::%s)'
                     else 'select not exists (select from %s where %I is distinct from %2$I::%s::text)' end, r.rel, r.attname, r.type));
  end loop;
  -- A key or a time that is not made by itself.
  for r in
    select c.oid::regclass as rel, c.relname from pg_class c join pg_attribute a on a.attrelid = c.oid
    where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and c.relname = any (v_shop) and a.attname = 'id' and not a.attisdropped
      and a.atttypid in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype) and a.attnotnull and not a.atthasdef and a.attidentity = ''
  loop
    execute format('alter table %s alter column id add generated by default as identity', r.rel);
    execute format('select setval(pg_get_serial_sequence(%1$L, ''id''), max(id) + 1, false) from %1$s having max(id) > 0', r.rel);
    insert into wheels_private.critical_fixes (kind, object, undo)
      values ('default', format('%s.id', r.rel), format('alter table %s alter column id drop identity if exists', r.rel));
  end loop;
  for r in
    select c.oid::regclass as rel, a.attname,
           case when a.attname <> 'id' then 'now()' when a.atttypid = 'uuid'::regtype then 'gen_random_uuid()' else 'gen_random_uuid()::text' end as def
    from pg_class c join pg_attribute a on a.attrelid = c.oid
    where c.relnamespace = 'public'::regnamespace and c.relname = any (v_shop) and not a.atthasdef and not a.attisdropped
      and (a.attname = 'id' and (a.atttypid in ('uuid'::regtype, 'text'::regtype) or a.atttypid = 'varchar'::regtype and (a.atttypmod < 0 or a.atttypmod >= 40))
           or a.attname in ('created_at', 'updated_at') and a.atttypid in ('timestamp'::regtype, 'timestamptz'::regtype))
  loop
    execute format('alter table %s alter column %I set default %s', r.rel, r.attname, r.def);
    insert into wheels_private.critical_fixes (kind, object, undo)
      values ('default', format('%s.%I', r.rel, r.attname), format('alter table %s alter column %I drop default', r.rel, r.attname));
  end loop;
  -- What the upsert of Digistore24 needs.
  if not exists (select from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
                 where i.indrelid = 'public.affiliate_sales'::regclass and i.indisunique and i.indisvalid and i.indnkeyatts = 1 and i.indpred is null
                   and a.attname = 'digistore24_order_id') then
    if exists (select from public.affiliate_sales where digistore24_order_id is not null group by digistore24_order_id having count(*) > 1) then
      raise exception 'affiliate_sales has several rows for one digistore24_order_id; the upsert of the backend needs them to be unique'
        using hint = 'Find them with: select digistore24_order_id, count(*) from affiliate_sales group by 1 having count(*) > 1. Merge them, and run this again.';
    end if;
    create unique index wheels_affiliate_sales_digistore24_order_id on public.affiliate_sales (digistore24_order_id);
    insert into wheels_private.critical_fixes (kind, object, undo)
      values ('index', 'public.wheels_affiliate_sales_digistore24_order_id', 'drop index if exists public.wheels_affiliate_sales_digistore24_order_id');
  end if;

  -- The rest is found by trying: each of the backend's statements is run and rolled back, and the constraint that refuses it is relaxed,
  -- until none does. Constraints that refuse nothing stay.
  for r in select * from jsonb_to_recordset(v_probes) as w(rel text, probe text)
  loop
    for attempt in 1 .. 100 loop
      v_column := null;
      v_constraint := null;
      begin
        execute r.probe;
        raise exception 'it works' using errcode = 'WO000';
      exception
        when sqlstate 'WO000' then exit;
        when foreign_key_violation then exit;  -- the row is right, only the account of the trial does not exist
        when not_null_violation then get stacked diagnostics v_column = column_name, v_rel = table_name;
        when check_violation or unique_violation then get stacked diagnostics v_constraint = constraint_name, v_rel = table_name;
      end;
      if coalesce(v_rel, '') <> r.rel or attempt = 100 then
        raise exception 'the backend cannot write into %: it is refused by % of %', r.rel, coalesce(v_column, v_constraint), v_rel
          using hint = 'A trigger or a constraint of another table refuses a row of the backend. See the statement in this script.';
      elsif v_column is not null then
        execute format('alter table public.%I alter column %I drop not null', r.rel, v_column);
        insert into wheels_private.critical_fixes (kind, object, undo)
          values ('not null', format('public.%I.%I', r.rel, v_column), format('alter table public.%I alter column %I set not null', r.rel, v_column));
      elsif not exists (select from pg_constraint k where k.conrelid = ('public.' || r.rel)::regclass and k.conname = v_constraint) then
        v_text := pg_get_indexdef(to_regclass(format('public.%I', v_constraint)));
        execute format('drop index public.%I', v_constraint);
        insert into wheels_private.critical_fixes (kind, object, undo) values ('index', format('public.%I', v_constraint), v_text);
      else
        select pg_get_constraintdef(k.oid) into strict v_text from pg_constraint k where k.conrelid = ('public.' || r.rel)::regclass and k.conname = v_constraint;
        execute format('alter table public.%I drop constraint %I', r.rel, v_constraint);
        insert into wheels_private.critical_fixes (kind, object, undo)
          values ('constraint', format('%I on public.%I', v_constraint, r.rel), format('alter table public.%I add constraint %I %s', r.rel, v_constraint, v_text));
      end if;
    end loop;
  end loop;

  ---------------------------------------------------------------------------------------------------------------------------------
  -- Functions, row level security, policies, triggers, indexes, grants: each only where it is not so already
  ---------------------------------------------------------------------------------------------------------------------------------
  for r in select * from jsonb_to_recordset(v_functions) as f(name text, returns text, language text, options text, body text, audience text) loop
    v_tag := 'wheels.ops ' || md5(concat_ws('|', r.returns, r.language, r.options, r.body, r.audience));
    v_text := format('wheels_private.%I()', r.name);
    continue when obj_description(to_regprocedure(v_text), 'pg_proc') = v_tag;
    if to_regprocedure(v_text) is null then
      insert into wheels_private.critical_fixes (kind, object, undo) values ('function', v_text, 'drop function if exists ' || v_text);
    end if;
    execute format('create or replace function %s returns %s language %s %s set search_path = %L as %L', v_text, r.returns, r.language, r.options, '', r.body);
    for s in select g.name from unnest(array['public', 'anon', 'authenticated', 'service_role']) as g(name)
             where g.name = 'public' or exists (select from pg_roles where rolname = g.name) loop
      execute format('revoke all on function %s from %s', v_text, s.name);
    end loop;
    if r.audience is not null then
      execute format('grant execute on function %s to %s', v_text, r.audience);
    end if;
    execute format('comment on function %s is %L', v_text, v_tag);
  end loop;

  for r in
    select c.relname, c.relrowsecurity from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
      and c.relname = any (v_shop || case when v_repair_trips then v_trips else '{}' end || case when v_repair_admins then array['admin_users'] else '{}' end)
      and not c.relrowsecurity
  loop
    execute format('alter table public.%I enable row level security', r.relname);
    if not exists (select from wheels_private.critical_fixes where kind = 'table' and object = 'public.' || r.relname) then
      insert into wheels_private.critical_fixes (kind, object, undo)
        values ('row level security', 'public.' || r.relname, format('alter table public.%I disable row level security', r.relname));
    end if;
  end loop;

  for r in
    select w.*, ('public.' || w.rel)::regclass as oid from jsonb_to_recordset(v_wanted) as w(rel text, name text, cmd text, roles text, qual text, chk text)
    where not exists (select from pg_policy q where q.polrelid = ('public.' || w.rel)::regclass and q.polname = w.name)
  loop
    execute format('create policy %I on public.%I for %s to %s', r.name, r.rel, r.cmd, coalesce(r.roles, v_audience))
      || coalesce(' using (' || r.qual || ')', '') || coalesce(' with check (' || r.chk || ')', '');
    select 'wheels.ops ' || md5(concat_ws('|', r.cmd, r.roles, r.qual, r.chk)) || ' '
           || md5(concat_ws('|', q.polcmd, q.polpermissive, q.polroles, pg_get_expr(q.polqual, q.polrelid), pg_get_expr(q.polwithcheck, q.polrelid)))
      into strict v_tag from pg_policy q where q.polrelid = r.oid and q.polname = r.name;
    execute format('comment on policy %I on public.%I is %L', r.name, r.rel, v_tag);
    insert into wheels_private.critical_fixes (kind, object, undo)
      values ('policy created', format('%I on public.%I', r.name, r.rel), format('drop policy if exists %I on public.%I', r.name, r.rel));
  end loop;

  for r in
    select * from jsonb_to_recordset(v_triggers) as w(rel text, name text, events text, cond text, function text)
    where not exists (select from pg_trigger g where g.tgrelid = ('public.' || w.rel)::regclass and g.tgname = w.name)
  loop
    execute format('create trigger %I before %s on public.%I for each row %s execute function wheels_private.%I()', r.name, r.events, r.rel, r.cond, r.function);
    insert into wheels_private.critical_fixes (kind, object, undo)
      values ('trigger', format('%I on public.%I', r.name, r.rel), format('drop trigger if exists %I on public.%I', r.name, r.rel));
  end loop;

  for r in
    select w.rel, w.cols from (values
      ('group_trips', array[v_creator]), ('group_trip_participants', array['trip_id']), ('group_trip_participants', array['user_id']),
      ('admin_users', array['user_id']), ('affiliate_sales', array['user_id']), ('affiliate_sales', array['affiliate_id']),
      ('affiliate_sales', array['session_id']), ('affiliate_sales', array['created_at']),
      ('user_wishlists', array['user_id', 'product_id']), ('wishlist_items', array['wishlist_id'])) as w(rel, cols)
    where to_regclass('public.' || w.rel) is not null and (v_repair_trips or w.rel <> all (v_trips)) and (v_repair_admins or w.rel <> 'admin_users')
      -- An index that begins with these columns will do.
      and not exists (
        select from pg_index i where i.indrelid = ('public.' || w.rel)::regclass and i.indisvalid and i.indpred is null
          and (select array_agg(a.attname::text order by k.rank) from unnest(i.indkey::smallint[]) with ordinality as k(num, rank)
               join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.num where k.rank <= cardinality(w.cols)) = w.cols)
  loop
    v_text := 'wheels_' || r.rel || '_' || array_to_string(r.cols, '_');
    execute format('create index %I on public.%I (%s)', v_text, r.rel, (select string_agg(quote_ident(c), ', ') from unnest(r.cols) c));
    insert into wheels_private.critical_fixes (kind, object, undo) values ('index', 'public.' || quote_ident(v_text), format('drop index if exists public.%I', v_text));
  end loop;

  -- Grants. Row level security does not cover TRUNCATE, and nobody but the service writes sales.
  for r in
    select w.rel, w.role, w.privilege, w.grant_it
    from (
      select t.rel, g.role, v.privilege,
             g.role = 'service_role' and v.privilege in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
             or g.role = 'authenticated' and (v.privilege = 'SELECT' or t.rel <> 'affiliate_sales' and v.privilege in ('INSERT', 'UPDATE', 'DELETE')) as grant_it,
             g.role <> 'service_role' and t.rel = any (v_shop)
             and not (v.privilege = 'SELECT' or g.role = 'authenticated' and t.rel <> 'affiliate_sales' and v.privilege in ('INSERT', 'UPDATE', 'DELETE')) as revoke_it
      from unnest(v_shop || case when v_repair_trips then v_trips else '{}' end) as t(rel)
      cross join unnest(array['public', 'anon', 'authenticated', 'service_role']) as g(role)
      cross join unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']
                        || case when current_setting('server_version_num')::int >= 170000 then array['MAINTAIN'] else '{}' end) as v(privilege)
      where g.role = 'public' or exists (select from pg_roles where rolname = g.role)
    ) w
    cross join lateral (
      select exists (select from pg_class c, aclexplode(c.relacl) a
                     where c.oid = ('public.' || w.rel)::regclass and a.privilege_type = w.privilege
                       and a.grantee = case w.role when 'public' then 0::oid else (select oid from pg_roles where rolname = w.role) end) as held
    ) h
    where w.grant_it and not h.held or w.revoke_it and h.held
  loop
    execute format(case when r.grant_it then 'grant %s on public.%I to %s' else 'revoke %s on public.%I from %s' end, r.privilege, r.rel, r.role);
    if not exists (select from wheels_private.critical_fixes where kind = 'table' and object = 'public.' || r.rel) then
      insert into wheels_private.critical_fixes (kind, object, undo)
        values ('grant', format('%s on public.%I to %s', r.privilege, r.rel, r.role),
                format(case when r.grant_it then 'revoke %s on public.%I from %s' else 'grant %s on public.%I to %s' end, r.privilege, r.rel, r.role));
    end if;
  end loop;
  if v_audience = 'authenticated' and not has_column_privilege('authenticated', 'public.affiliate_sales', 'thank_you_validated', 'UPDATE') then
    grant update (thank_you_validated) on public.affiliate_sales to authenticated;
    insert into wheels_private.critical_fixes (kind, object, undo)
      values ('grant', 'UPDATE (thank_you_validated) on public.affiliate_sales to authenticated',
              'revoke update (thank_you_validated) on public.affiliate_sales from authenticated');
  end if;

  -- Numbered keys need their sequence.
  for r in
    select q.oid::regclass as seq, g.rolname, t.relname from pg_class t join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = t.oid and d.deptype = 'a'
    join pg_class q on d.classid = 'pg_class'::regclass and q.oid = d.objid and q.relkind = 'S' cross join pg_roles g
    where t.relnamespace = 'public'::regnamespace and t.relname = any (v_shop || case when v_repair_trips then v_trips else '{}' end)
      and (g.rolname = 'service_role' or g.rolname = 'authenticated' and t.relname <> 'affiliate_sales') and not has_sequence_privilege(g.oid, q.oid, 'USAGE')
  loop
    execute format('grant usage on sequence %s to %I', r.seq, r.rolname);
    insert into wheels_private.critical_fixes (kind, object, undo)
      values ('grant', format('USAGE on %s to %s', r.seq, r.rolname), format('revoke usage on sequence %s from %I', r.seq, r.rolname));
  end loop;

  -- A helper of an earlier repair: anyone could ask it over the API whether anyone takes part in any trip.
  for r in
    select f.oid::regprocedure as fn, coalesce(a.grantee, 0) as grantee from pg_proc f cross join aclexplode(coalesce(f.proacl, acldefault('f', f.proowner))) a
    where f.pronamespace = 'public'::regnamespace and f.proname = 'is_trip_participant' and f.prosecdef and a.privilege_type = 'EXECUTE'
      and pg_has_role(f.proowner, 'USAGE')
      and (a.grantee = 0 or a.grantee in (select oid from pg_roles where rolname in ('anon', 'authenticated')))
      and not exists (select from pg_depend d where d.refclassid = 'pg_proc'::regclass and d.refobjid = f.oid and d.deptype in ('n', 'a'))
      and not exists (select from pg_proc o where o.oid <> f.oid and o.prosrc ~ '\mis_trip_participant\M')
  loop
    v_text := case r.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(r.grantee)) end;
    execute format('revoke execute on function %s from %s', r.fn, v_text);
    insert into wheels_private.critical_fixes (kind, object, undo)
      values ('grant', format('EXECUTE on %s to %s', r.fn, v_text), format('grant execute on function %s to %s', r.fn, v_text));
  end loop;

  ---------------------------------------------------------------------------------------------------------------------------------
  -- Does it hold?
  ---------------------------------------------------------------------------------------------------------------------------------
  for r in
    select c.oid::regclass as rel, c.relname, c.relrowsecurity, row_security_active(c.oid) as active,
           (select quote_ident(a.attname) from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum limit 1) as col
    from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and c.relname = any (v_trips || v_shop || 'admin_users'::text)
  loop
    if not r.relrowsecurity and (r.relname = any (v_shop) or r.relname = 'admin_users' and v_repair_admins or r.relname = any (v_trips) and v_repair_trips) then
      v_bad := v_bad || format('%s: row level security is off', r.rel);
    end if;
    -- The helpers run as their owner, who is whoever runs this: subject to the policies, they would recurse.
    if r.active then
      v_bad := v_bad || format('%s: row level security applies to %s; run this as a role with BYPASSRLS, or without FORCE ROW LEVEL SECURITY', r.rel, current_user);
    end if;
    for s in
      select g.rolname, w.statement, w.runs from pg_roles g cross join (values
        ('select * from %1$s', false), ('select * from %1$s for update', false), ('insert into %1$s default values', false),
        ('insert into %1$s default values returning *', false), ('insert into %1$s default values on conflict do nothing', false),
        ('update %1$s set %2$s = default', false), ('update %1$s set %2$s = default where %2$s is not null returning *', false),
        ('delete from %1$s', false), ('delete from %1$s returning *', false), ('select from %1$s limit 1', true)) as w(statement, runs)
      where g.rolname in ('anon', 'authenticated', 'service_role') and pg_has_role(g.oid, 'MEMBER')
    loop
      begin
        perform set_config('role', s.rolname, true);
        if s.runs then
          execute format(s.statement, r.rel);
        else
          -- The rewriter raises 42P17 when a statement is prepared, whoever may execute it.
          execute 'prepare wheels_ops_probe as ' || format(s.statement, r.rel, r.col);
          deallocate wheels_ops_probe;
        end if;
        raise exception 'it works' using errcode = 'WO000';
      exception
        -- A rule may keep a statement from anybody (0A000): that is no recursion.
        when sqlstate 'WO000' or insufficient_privilege or feature_not_supported then null;
        when others then v_bad := v_bad || format('%s as %s: %s: %s', format(s.statement, r.rel, r.col), s.rolname, sqlstate, sqlerrm);
      end;
    end loop;
  end loop;
  -- The backend's own statements, with the service key.
  for r in
    select w.rel, w.probe from jsonb_to_recordset(v_probes) as w(rel text, probe text)
    where exists (select from pg_roles g where g.rolname = 'service_role' and pg_has_role(g.oid, 'MEMBER'))
  loop
    begin
      begin
        perform set_config('role', 'service_role', true);
      exception
        -- Since PostgreSQL 16 a member may be kept from it: then the owner's trial above must do.
        when insufficient_privilege then raise exception 'not tried' using errcode = 'WO000';
      end;
      execute r.probe;
      raise exception 'it works' using errcode = 'WO000';
    exception
      when sqlstate 'WO000' or foreign_key_violation then null;
      when others then v_bad := v_bad || format('the backend cannot write into %s as service_role: %s: %s', r.rel, sqlstate, sqlerrm);
    end;
  end loop;
  for r in
    select f.oid::regprocedure as fn, a.grantee, f.proconfig, n.nspacl from pg_proc f join pg_namespace n on n.oid = f.pronamespace
    left join lateral (select x.grantee from aclexplode(coalesce(f.proacl, acldefault('f', f.proowner))) x where x.grantee <> f.proowner) a on true
    where n.nspname = 'wheels_private'
  loop
    if r.grantee = 0 and v_audience <> 'public' then
      v_bad := v_bad || format('%s can be executed by everyone', r.fn);
    elsif r.proconfig is null or not r.proconfig::text ~ 'search_path=' then
      v_bad := v_bad || format('%s has no search_path of its own', r.fn);
    end if;
  end loop;
  for r in
    select g.rolname, w.col from unnest(array['amount', 'amount_total', 'commission', 'commission_rate', 'status', 'user_id', 'affiliate_id']) as w(col)
    cross join pg_roles g where g.rolname in ('anon', 'authenticated') and has_column_privilege(g.rolname, 'public.affiliate_sales', w.col, 'UPDATE')
  loop
    v_bad := v_bad || format('%s may change affiliate_sales.%s', r.rolname, r.col);
  end loop;
  if cardinality(v_bad) > 0 then
    raise exception E'the repair does not hold; nothing was changed:\n%', array_to_string(v_bad, E'\n');
  end if;

  select count(*) into v_changes from wheels_private.critical_fixes where id > v_changes and kind not in ('profile', 'admins wrote');
  if v_changes > 0 then
    -- The API keeps the schema in memory.
    notify pgrst, 'reload schema';
  end if;
  raise notice 'critical database fixes: % changes made, everything verified', v_changes;
  perform set_config('search_path', v_search_path, true);
end $fix$;

-- For an SQL editor, which does not show notices.
select count(*) as changes, coalesce(max(made_at)::text, 'never') as last_change, 'verified' as outcome from wheels_private.critical_fixes where kind not in ('profile', 'admins wrote');
