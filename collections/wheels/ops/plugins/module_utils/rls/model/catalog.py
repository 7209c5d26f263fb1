# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What row-level security depends on, read from the system catalogs once.

PostgreSQL keeps a policy as a tree of nodes (``pg_node_tree``). Its text names every relation and function by oid,
which no parser of SQL could do without knowing all search paths, views and overloads. A few regular expressions over
that text give all that the simulation needs; only what is rewritten is parsed as SQL.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field

from .roles import RoleClass, role_classes
from .transactions import Cursor, Row, rows
from .tree import literal

#: Functions that tell who the caller is from settings of the session. They give the same inside a SECURITY DEFINER
#: function.
AUTH_FUNCTIONS = ("uid", "role", "email", "jwt")

COMMANDS = {"r": "SELECT", "a": "INSERT", "w": "UPDATE", "d": "DELETE", "*": "ALL"}

# A backslash escapes the character behind it in names, so that every other brace is structure.
_NODE = re.compile(
    r"\\.|(?P<sublink>\{SUBLINK :subLinkType"
    r" (?P<linktype>\d))|(?P<query>\{QUERY)|(?P<open>\{)|(?P<close>\})|(?P<fromless>:rtable <>)"
    r"|:rtekind 0 :relid (?P<relid>\d+)|:(?P<fkind>funcid|opfuncid|aggfnoid|winfnoid) (?P<funcid>\d+)"
)
_FUNCTION = re.compile(r":(?:funcid|opfuncid|aggfnoid|winfnoid) (\d+)")
_RELATION = re.compile(r":rtekind 0 :relid (\d+)")
_IDENTIFIER = r'(?:[^\W\d][\w$]*|"(?:[^"]|"")+")'
_COLUMN = rf"{_IDENTIFIER}(?:\.{_IDENTIFIER})*"
_CAST = r"\)::[\w.\"$ ]+?"
_SELF_COMPARISON = re.compile(rf"(?<![\w$\".])(\({_COLUMN}{_CAST}|{_COLUMN}) = \1(?![\w$\".:(])")
_DIRECT_WRAP = re.compile(r"\( SELECT (?:auth\.\w+\(\)|current_setting\([^()]*\)) AS \w+\)")
#: What every self-comparison has, and quick to search for: the same last name on both sides, or quoted names.
_SUSPECT = re.compile(
    rf"([\w$]+)(?:{_CAST})? = \(?(?:{_IDENTIFIER}\.)*\1(?![\w$])|\"(?:{_CAST})? = \(?(?:{_IDENTIFIER}\.)*\""
)


@dataclass(frozen=True, eq=False)
class Expression:
    """One expression of a policy, or the query of a view: its text and what its node tree refers to.

    ``bare_auth``: calls of an identity function that no FROM-less sub-select surrounds, counted by function oid.
    ``nested_wraps``: FROM-less sub-selects that hold nothing but another one.
    """

    text: str
    tree: str = field(repr=False)
    relations: t.Tuple[int, ...] = ()
    functions: t.FrozenSet[int] = frozenset()
    has_sublink: bool = False
    locks_rows: bool = False

    def identity_calls(self, identity: t.Collection[int]) -> t.Tuple[t.Dict[int, int], int, int]:
        """(bare calls by oid, wrapped calls, nested wraps), from the nesting of the node tree."""
        if ":rtable <>" not in self.tree:  # no FROM-less sub-select
            counts = {oid: self.tree.count(f":funcid {oid} ") for oid in identity if oid in self.functions}
            return {oid: count for oid, count in counts.items() if count}, 0, 0
        direct = self._direct_wraps(identity)
        if direct is not None:
            return direct[0], direct[1], 0
        bare: t.Dict[int, int] = {}
        wrapped = nested = 0
        # One entry for every open brace: "" or the kind of node; a query becomes "fromless" once its range table is
        # seen empty.
        stack: t.List[str] = []
        for match in _NODE.finditer(self.tree):
            kind = match.lastgroup
            if match["close"]:
                stack.pop()
            elif match["sublink"]:
                stack.append("sublink" if match["linktype"] == "4" else "other")
            elif match["query"]:
                stack.append("query")
            elif match["open"]:
                stack.append("")
            elif match["fromless"]:
                if stack and stack[-1] == "query":
                    stack[-1] = "fromless"
                    # Node above node: SUBLINK, QUERY, TARGETENTRY, SUBLINK, QUERY. Anything between would be another
                    # expression.
                    if stack[-2:-1] == ["sublink"] and stack[-4:-2] == ["fromless", ""] and stack[-5:-4] == ["sublink"]:
                        nested += 1
            elif kind == "funcid" and int(match["funcid"]) in identity:
                inner = next((name for name in reversed(stack) if name in ("query", "fromless")), "")
                if inner == "fromless":
                    wrapped += 1
                else:
                    oid = int(match["funcid"])
                    bare[oid] = bare.get(oid, 0) + 1
        return bare, wrapped, nested

    def _direct_wraps(self, identity: t.Collection[int]) -> t.Optional[t.Tuple[t.Dict[int, int], int]]:
        """(bare calls by oid, wrapped calls) where every FROM-less sub-select is ``( SELECT auth.uid() AS uid)`` and
        its kind, which the text tells sooner than the tree; None where one holds anything else.
        """
        called = [oid for oid in identity if oid in self.functions]
        if len(called) != 1:
            return None
        wrapped = len(_DIRECT_WRAP.findall(self.text))
        if wrapped != self.tree.count(":rtable <>"):
            return None
        bare = self.tree.count(f":funcid {called[0]} ") - wrapped
        return ({called[0]: bare} if bare else {}), wrapped

    def self_comparisons(self) -> t.List[str]:
        """Comparisons of a column with itself: what is left of ``x.trip_id = trip_id`` when the inner table captured
        the name.
        """
        if not _SUSPECT.search(self.text):
            return []
        return [match[0] for match in _SELF_COMPARISON.finditer(self.text)]


def expression(text: t.Optional[str], tree: t.Optional[str]) -> t.Optional[Expression]:
    """An expression of the catalog; None for none."""
    if tree is None or text is None:
        return None
    return Expression(
        text,
        tree,
        tuple(dict.fromkeys(int(oid) for oid in _RELATION.findall(tree))),
        frozenset(int(oid) for oid in _FUNCTION.findall(tree)),
        "{SUBLINK " in tree,
        "{ROWMARKCLAUSE " in tree,
    )


@dataclass(frozen=True, eq=False)
class Policy:
    """A row of ``pg_policy``. ``roles`` holds oids, 0 for PUBLIC; ``command`` is one of r a w d ``*``."""

    oid: int
    name: str
    quoted: str
    relation: int
    command: str
    permissive: bool
    roles: t.Tuple[int, ...]
    role_names: t.Tuple[str, ...]
    using: t.Optional[Expression]
    check: t.Optional[Expression]
    comment: t.Optional[str] = None

    @property
    def has_sublink(self) -> bool:
        """As PostgreSQL sees it: in either expression, whichever is applied."""
        return bool((self.using and self.using.has_sublink) or (self.check and self.check.has_sublink))

    def slot(self, name: str) -> t.Optional[Expression]:
        return self.using if name == "using" else self.check


@dataclass(eq=False)
class Relation:
    """A table, partitioned table, view or other relation that has rows."""

    oid: int
    schema: str
    name: str
    qualified: str
    kind: str
    owner: int
    secured: bool
    forced: bool
    invoker: bool
    ruled: bool
    estimated_rows: float
    extension: bool
    #: Whether the session may do what only an owner may, such as changing its policies.
    owned: bool
    policies: t.List[Policy] = field(default_factory=list)
    query: t.Optional[Expression] = None

    def references(self) -> t.Set[int]:
        """The relations that its policies or its query name."""
        expressions = [
            self.query,
            *(expression for policy in self.policies for expression in (policy.using, policy.check)),
        ]
        return {oid for expression in expressions if expression is not None for oid in expression.relations}

    @property
    def short(self) -> str:
        """How people call it: without the schema where that is ``public``."""
        return self.qualified[len("public.") :] if self.schema == "public" else self.qualified


@dataclass(eq=False)
class Function:
    """A function in SQL or PL/pgSQL of a user's schema."""

    oid: int
    schema: str
    name: str
    qualified: str
    signature: str
    language: str
    definer: bool
    volatility: str
    owner: int
    settings: t.Tuple[str, ...]
    source: str
    body: t.Optional[Expression]
    definition: t.Optional[str]
    arguments: int
    #: How many of them a call may leave out; None where it may give more (VARIADIC).
    optional: t.Optional[int]
    returns_trigger: bool
    extension: bool
    public_execute: bool

    def accepts(self, count: int) -> bool:
        """Whether a call with that many arguments can be one of this function."""
        return self.optional is None or self.arguments - self.optional <= count <= self.arguments

    @property
    def search_path(self) -> t.Optional[str]:
        """The search_path pinned by the function itself."""
        for setting in self.settings:
            name, _ignored, value = setting.partition("=")
            if name == "search_path":
                return value
        return None


@dataclass(frozen=True)
class Role:
    oid: int
    name: str
    superuser: bool
    bypass: bool


@dataclass
class Catalog:
    """Everything that was read, by oid. ``held`` gives for a role those named roles whose privileges it has."""

    version: int
    database: str
    current_user: str
    session_user: str
    search_path: t.Tuple[str, ...]
    relations: t.Dict[int, Relation]
    functions: t.Dict[int, Function]
    roles: t.Dict[int, Role]
    classes: t.List[RoleClass]
    held: t.Dict[int, t.FrozenSet[int]]
    identity: t.Dict[int, str]
    schemas: t.Optional[t.FrozenSet[str]] = None
    asked_roles: t.Optional[t.Tuple[str, ...]] = None
    #: What the simulations of this catalog have worked out and can share.
    uses: t.Dict[t.Any, t.Any] = field(default_factory=dict, repr=False)

    def circular(self) -> t.FrozenSet[int]:
        """The relations from which references lead in a circle, whoever reads and for whatever command.

        Nothing else can recurse.
        """
        if "circular" not in self.uses:
            self.uses["circular"] = leading_round(
                {oid: relation.references() for oid, relation in self.relations.items()}
            )
        oids: t.FrozenSet[int] = self.uses["circular"]
        return oids

    def policies(self) -> t.Iterator[Policy]:
        for relation in self.relations.values():
            yield from relation.policies

    def audited(self, relation: Relation) -> bool:
        """Whether the caller asked about this relation's schema."""
        return self.schemas is None or relation.schema in self.schemas

    def role_name(self, oid: int) -> str:
        return self.roles[oid].name if oid in self.roles else "public" if oid == 0 else str(oid)

    def by_name(self, schema: str, name: str) -> t.Optional[Relation]:
        if not hasattr(self, "_names"):
            self._names = {(relation.schema, relation.name): relation for relation in self.relations.values()}
        return self._names.get((schema, name))


_RELATIONS = """
select c.oid::bigint, n.nspname as schema, c.relname as name, format('%I.%I', n.nspname, c.relname) as qualified,
       c.relkind::text as kind, c.relowner::bigint as owner, c.relrowsecurity as secured, c.relforcerowsecurity as forced,
       c.relhasrules and (c.relkind <> 'v' or (select count(*) > 1 from pg_rewrite r where r.ev_class = c.oid)) as ruled,
       coalesce((select option_value::boolean from pg_options_to_table(c.reloptions) where option_name = 'security_invoker'), false) as invoker,
       c.reltuples as estimated_rows,
       exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e') as extension,
       pg_has_role(c.relowner, 'USAGE') as owned
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
 order by n.nspname, c.relname
"""

_POLICIES = """
select p.oid::bigint, p.polname as name, quote_ident(p.polname) as quoted, p.polrelid::bigint as relation, p.polcmd::text as command,
       p.polpermissive as permissive, p.polroles::bigint[] as roles,
       array(select case when r.oid = 0 then 'public' else quote_ident(pg_get_userbyid(r.oid)) end from unnest(p.polroles) as r(oid)) as role_names,
       pg_get_expr(p.polqual, p.polrelid) as using_text, p.polqual::text as using_tree,
       pg_get_expr(p.polwithcheck, p.polrelid) as check_text, p.polwithcheck::text as check_tree,
       obj_description(p.oid, 'pg_policy') as comment
  from pg_policy p order by p.polname
"""

_VIEWS = """
select ev_class::bigint as relation, ev_action::text as tree from pg_rewrite r join pg_class c on c.oid = ev_class
  join pg_namespace n on n.oid = c.relnamespace
 where rulename = '_RETURN' and c.relkind = 'v' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
"""

_FUNCTIONS = """
select p.oid::bigint, n.nspname as schema, p.proname as name, format('%%I.%%I', n.nspname, p.proname) as qualified,
       format('%%I.%%I(%%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) as signature,
       l.lanname as language, p.prosecdef as definer, p.provolatile::text as volatility, p.proowner::bigint as owner,
       coalesce(p.proconfig, '{}') as settings, coalesce(p.prosrc, '') as source, %s as body,
       case when l.lanname = 'plpgsql' and p.prorettype <> 'trigger'::regtype and p.prorettype <> 'event_trigger'::regtype
            then pg_get_functiondef(p.oid) end as definition, p.pronargs::integer as arguments,
       case when p.provariadic = 0 then p.pronargdefaults::integer end as optional,
       p.prorettype = 'trigger'::regtype or p.prorettype = 'event_trigger'::regtype as returns_trigger,
       exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e') as extension,
       exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a where a.grantee = 0) as public_execute
  from pg_proc p join pg_namespace n on n.oid = p.pronamespace join pg_language l on l.oid = p.prolang
 where l.lanname in ('sql', 'plpgsql') and p.prokind in ('f', 'p') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
"""

_IDENTITY = """
select p.oid::bigint, format('%%I.%%I', n.nspname, p.proname) as name from pg_proc p join pg_namespace n on n.oid = p.pronamespace
 where (n.nspname = 'auth' and p.proname = any(%(names)s) and p.pronargs = 0) or (n.nspname = 'pg_catalog' and p.proname = 'current_setting')
"""

_HELD = """
select u.oid::bigint as "user", array_agg(n.oid::bigint) filter (where pg_has_role(u.oid, n.oid, 'USAGE')) as held
  from unnest(%(users)s::oid[]) as u(oid), unnest(%(named)s::oid[]) as n(oid)
 group by u.oid
"""


class Replacement(t.NamedTuple):
    """Policies (oids) to be left out of a catalog, and objects of ``policies_as_json`` to be read in their place."""

    gone: t.FrozenSet[int]
    rows: t.Sequence[Row]


def read(
    cursor: Cursor,
    *,
    schemas: t.Optional[t.Sequence[str]] = None,
    roles: t.Optional[t.Sequence[str]] = None,
    replacement: t.Optional[Replacement] = None,
) -> Catalog:
    """Reads the catalogs inside the caller's transaction, whose ``search_path`` must be empty. With ``replacement`` it
    is the catalog as it would be with other policies.
    """
    _classes, build = fetch(cursor, schemas=schemas, roles=roles, replacement=replacement)
    return build()


def policies_as_json(tables: t.Sequence[str], names: t.Optional[t.Collection[str]] = None) -> str:
    """A query for the policies of some tables (qualified) as one list of objects, each with its ``table`` beside what
    ``policy`` takes. ``names`` narrows it down.
    """
    oids = ", ".join(f"to_regclass({literal(table)})::oid" for table in tables)
    condition = f"p.polrelid = any(array[{oids}]::oid[])"
    if names is not None:
        condition += f" and p.polname = any(array[{', '.join(map(literal, sorted(names)))}]::name[])"
    mine = _POLICIES.replace(" order by p.polname", f" where {condition}")
    return (
        "select coalesce(json_agg(row_to_json(p)), '[]') from (select format('%I.%I', n.nspname, c.relname) as"
        f' "table", s.* from ({mine}) s join pg_catalog.pg_class c on c.oid = s.relation'
        " join pg_catalog.pg_namespace n on n.oid = c.relnamespace order by s.name) p"
    )


def policy(row: Row) -> Policy:
    """The policy of an object of ``policies_as_json``."""
    others = ("table", "using_text", "using_tree", "check_text", "check_tree")
    plain = {name: value for name, value in row.items() if name not in others}
    plain["roles"], plain["role_names"] = tuple(row["roles"]), tuple(row["role_names"])
    return Policy(
        **plain,
        using=expression(row["using_text"], row["using_tree"]),
        check=expression(row["check_text"], row["check_tree"]),
    )


def fetch(
    cursor: Cursor,
    *,
    schemas: t.Optional[t.Sequence[str]] = None,
    roles: t.Optional[t.Sequence[str]] = None,
    replacement: t.Optional[Replacement] = None,
) -> t.Tuple[t.List[RoleClass], t.Callable[[], Catalog]]:
    """The queries of ``read``: the role classes, and what makes the rest of the answers without the cursor, which is
    free for others by then.
    """
    server = cursor.connection.server_version
    cursor.execute("select current_database(), current_user, session_user")
    database, current_user, session_user = cursor.fetchone()
    relations = {row["oid"]: Relation(**row) for row in rows(cursor, _RELATIONS)}
    policies, views = rows(cursor, _POLICIES), rows(cursor, _VIEWS)
    if replacement is not None:
        kept = [row for row in policies if row["oid"] not in replacement.gone]
        policies = sorted([*kept, *replacement.rows], key=lambda row: str(row["name"]))
    body = "p.prosqlbody::text" if server >= 140000 else "null::text"
    called = rows(cursor, _FUNCTIONS % body)
    all_roles = {
        row["oid"]: Role(**row)
        for row in rows(
            cursor, "select oid::bigint, rolname as name, rolsuper as superuser, rolbypassrls as bypass from pg_roles"
        )
    }
    classes = role_classes(cursor, roles, named={oid for row in policies for oid in row["roles"]})
    role_oids = {oid for row in policies if row["relation"] in relations for oid in row["roles"] if oid}
    role_oids |= {relation.owner for relation in relations.values() if relation.secured}
    users = {role_class.oid for role_class in classes} | {
        relation.owner for relation in relations.values() if relation.kind == "v"
    }
    users |= {row["owner"] for row in called if row["definer"]} | set(role_oids)
    held = {
        row["user"]: frozenset(row["held"] or ())
        for row in rows(
            cursor, _HELD, {"users": sorted(users & set(all_roles)), "named": sorted(role_oids & set(all_roles))}
        )
    }
    identity = {row["oid"]: row["name"] for row in rows(cursor, _IDENTITY, {"names": list(AUTH_FUNCTIONS)})}
    search_path = _default_search_path(cursor)

    def build() -> Catalog:
        functions = _built(relations, policies, views, called)
        return Catalog(
            server,
            database,
            current_user,
            session_user,
            search_path,
            relations,
            functions,
            all_roles,
            classes,
            held,
            identity,
            None if schemas is None else frozenset(schemas),
            None if roles is None else tuple(roles),
        )

    return classes, build


def _built(
    relations: t.Dict[int, Relation], policies: t.List[Row], views: t.List[Row], called: t.List[Row]
) -> t.Dict[int, Function]:
    """Gives every relation its policies or its query, with their node trees read, and makes the functions."""
    for row in policies:
        if row["relation"] in relations:
            relations[row["relation"]].policies.append(policy(row))
    for row in views:
        parsed_expression = expression("", row["tree"])
        if parsed_expression and row["relation"] in relations:
            # A view's own rule names the view itself as OLD and NEW, which are never read.
            mine = tuple(oid for oid in parsed_expression.relations if oid != row["relation"])
            relations[row["relation"]].query = Expression(
                "",
                parsed_expression.tree,
                mine,
                parsed_expression.functions,
                parsed_expression.has_sublink,
                parsed_expression.locks_rows,
            )
    functions = {}
    for row in called:
        row["body"] = expression("", row["body"])
        row["settings"] = tuple(row["settings"])
        functions[row["oid"]] = Function(**row)
    return functions


def leading_round(references: t.Mapping[int, t.Set[int]]) -> t.FrozenSet[int]:
    """What is left when everything is taken away, again and again, that refers to nothing that is left."""
    referred: t.Dict[int, t.List[int]] = {}
    for oid, targets in references.items():
        for target in targets & references.keys():
            referred.setdefault(target, []).append(oid)
    left = {oid: len(targets & references.keys()) for oid, targets in references.items()}
    done = [oid for oid, count in left.items() if not count]
    while done:
        oid = done.pop()
        del left[oid]
        for source in referred.get(oid, ()):
            left[source] -= 1
            if not left[source]:
                done.append(source)
    return frozenset(left)


def _default_search_path(cursor: Cursor) -> t.Tuple[str, ...]:
    """The schemas that a session of this database looks through unless a role or a function says otherwise."""
    cursor.execute(
        "select coalesce((select substr(s, 13) from pg_db_role_setting d, unnest(d.setconfig) s where d.setdatabase ="
        " (select oid from pg_database where datname = current_database()) and d.setrole = 0 and s like"
        " 'search\\_path=%'), (select boot_val from pg_settings where name = 'search_path'))"
    )
    return split_search_path(cursor.fetchone()[0])


def split_search_path(value: str) -> t.Tuple[str, ...]:
    """The schemas of a ``search_path`` setting, unquoted; ``"$user"`` and empty names are left out."""
    names = [
        quoted.replace('""', '"') if quoted else bare.lower()
        for quoted, bare in re.findall(r'"((?:[^"]|"")*)"|([^\s,"]+)', value)
    ]
    return tuple(name for name in names if name and name not in ("$user", "''"))
