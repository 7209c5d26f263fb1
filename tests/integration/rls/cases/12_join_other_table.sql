-- SPDX-License-Identifier: GPL-3.0-or-later
-- sub-select joins the recursive table with an innocent table whose RLS must stay enforced
create table public.convs(id int primary key, archived boolean default false);
create table public.conv_members(conv_id int, user_id uuid, primary key(conv_id,user_id));
create table public.blocks(blocker uuid, blocked uuid, primary key(blocker,blocked));
create table public.messages(id int primary key, conv_id int, sender uuid, body text);
alter table convs enable row level security; alter table conv_members enable row level security; alter table blocks enable row level security; alter table messages enable row level security;
create policy bl on blocks for select to authenticated using (blocker = auth.uid());
create policy cm on conv_members for select to authenticated using (exists(select 1 from conv_members me join convs c on c.id = me.conv_id where me.conv_id = conv_members.conv_id and me.user_id = auth.uid() and not c.archived and not exists(select 1 from blocks b where b.blocked = conv_members.user_id)));
create policy cv on convs for select to authenticated using (id in (select m.conv_id from conv_members m where m.user_id = auth.uid()));
create policy ms on messages for select to authenticated using (conv_id in (select c.id from convs c));
