-- SPDX-License-Identifier: GPL-3.0-or-later
create table public.nodes(id int primary key, parent int, owner uuid, pub boolean default false);
create table public.shares(node_id int, user_id uuid, primary key(node_id,user_id));
alter table nodes enable row level security; alter table shares enable row level security;
create policy n on nodes for select to authenticated using (id in (select x.id from nodes x where x.owner = auth.uid() union select s.node_id from shares s where s.user_id = auth.uid())
   or exists(with up as (select p.id, p.pub from nodes p where p.pub) select 1 from up where up.id = nodes.parent));
create policy s on shares for select to authenticated using (exists(select 1 from shares me left join nodes nn on nn.id = me.node_id where me.node_id = shares.node_id and (me.user_id = auth.uid() or nn.owner = auth.uid())));
