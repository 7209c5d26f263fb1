-- SPDX-License-Identifier: MIT
--
-- Takes back what critical_database_fixes.sql changed, in reverse order, from its journal wheels_private.critical_fixes.
--
-- Policies, row level security, grants, constraints and defaults become what they were. Tables and columns that the fixes added are
-- dropped while nothing is in them; with data in them they stay, and a notice says so. A constraint that today's rows break stays relaxed.
-- Mind what this means: recursive policies are back, and so are the holes.
--
-- One DO block, so one transaction, however it is run. Without a journal there is nothing to take back. The line in the ledger of
-- wheels.ops goes as well, so that the next deployment applies the fixes again.

do $undo$
declare
  v_search_path constant text := current_setting('search_path');
  v_kept text[] := '{}';
  v_safe boolean;
  v_done bigint := 0;
  r record;
begin
  perform set_config('search_path', '', true);
  if current_setting('lock_timeout') = '0' then
    perform set_config('lock_timeout', '10s', true);
  end if;
  perform pg_advisory_xact_lock(2003332211);
  if to_regclass('wheels_private.sql_scripts') is not null then
    begin
      execute 'delete from wheels_private.sql_scripts where name = ''critical_database_fixes.sql''';
    exception when insufficient_privilege then
      raise notice 'the ledger wheels_private.sql_scripts still says that the fixes are applied: % may not change it', current_user;
    end;
  end if;
  if to_regclass('wheels_private.critical_fixes') is null then
    raise notice 'critical_database_fixes.sql was not applied here, or is undone already';
    perform set_config('search_path', v_search_path, true);
    return;
  end if;
  for r in execute 'select * from wheels_private.critical_fixes where kind not in (''profile'', ''admins wrote'') order by id desc' loop
    begin
      v_safe := true;
      if r.guard is not null then
        execute r.guard into v_safe;
      end if;
      if v_safe then
        execute r.undo;
        v_done := v_done + 1;
      else
        v_kept := v_kept || format('%s %s: it holds data', r.kind, r.object);
      end if;
    exception
      -- Someone else is at work: try again later, as a whole.
      when lock_not_available or query_canceled or deadlock_detected or serialization_failure then raise;
      when others then
        -- An old policy or grant that cannot be put back would leave the table in neither state.
        if r.kind in ('policy dropped', 'policy created', 'row level security', 'grant', 'function', 'trigger') then
          raise exception 'cannot take back % %: %', r.kind, r.object, sqlerrm using errcode = sqlstate;
        end if;
        v_kept := v_kept || format('%s %s: %s', r.kind, r.object, sqlerrm);
    end;
  end loop;
  drop table wheels_private.critical_fixes;
  if not exists (select from pg_class where relnamespace = 'wheels_private'::regnamespace)
     and not exists (select from pg_proc where pronamespace = 'wheels_private'::regnamespace) then
    drop schema wheels_private;
  end if;
  notify pgrst, 'reload schema';
  raise notice 'critical database fixes: % changes taken back', v_done;
  if cardinality(v_kept) > 0 then
    raise notice E'kept:\n%', array_to_string(v_kept, E'\n');
  end if;
  perform set_config('search_path', v_search_path, true);
end $undo$;
