"""How the contact sheet looks, in light and in dark."""

STYLE = """
:root { --bg: #f6f6f4; --card: #fff; --ink: #1d2023; --soft: #5d646b; --line: #dcdedc; --frame: #ececea;
  --accepted: #1d8348; --duplicate: #1f6fb5; --filtered: #b0760b; --invalid: #b8352a; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --bg: #15171a; --card: #1f2226; --ink: #e8eaec; --soft: #a2a9b0; --line: #34383d;
  --frame: #121416; --accepted: #3fae71; --duplicate: #58a3e2; --filtered: #dba33c; --invalid: #e5766c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1500px; padding: 28px 32px 60px; background: var(--bg); color: var(--ink);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 0 0 2px; }
h3 { font-size: 15px; font-weight: 600; margin: 22px 0 10px; } h3 span { font-weight: 400; color: var(--soft); margin-left: 6px; }
h3 code { font-size: 14px; padding: 2px 7px; border-radius: 5px; background: var(--frame); } h3 b { color: var(--soft); margin-left: 4px; }
header p, .says, .more { margin: 0 0 16px; color: var(--soft); } .verdict { color: var(--ink); font-weight: 600; }
section { margin-top: 44px; padding-top: 18px; border-top: 3px solid var(--tone, var(--line)); }
.accepted { --tone: var(--accepted); } .duplicate { --tone: var(--duplicate); } .filtered { --tone: var(--filtered); } .invalid { --tone: var(--invalid); }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; }
.tile { flex: 1 1 150px; padding: 12px 16px; background: var(--card); border: 1px solid var(--line); border-left: 5px solid var(--tone, var(--soft));
  border-radius: 8px; color: inherit; text-decoration: none; }
.tile b { display: block; font-size: 28px; line-height: 1.15; font-variant-numeric: tabular-nums; } .tile span { font-weight: 600; }
.tile small { display: block; font-size: 12px; color: var(--soft); }
.bar { display: flex; height: 10px; margin-top: 14px; border-radius: 5px; overflow: hidden; gap: 2px; } .bar i { background: var(--tone); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(168px, 1fr)); gap: 12px; }
.groups { display: flex; flex-wrap: wrap; gap: 18px; }
.group { flex: 1 0 100%; display: flex; gap: 16px; padding-top: 18px; border-top: 1px solid var(--line); }
.group > figure { flex: 0 0 208px; align-self: flex-start; } .behind { flex: 1; min-width: 0; }
.behind .grid { grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 10px; } .behind .frame { height: 112px; }
.group.few { flex: 0 0 auto; } .group.few { gap: 12px; } .few > figure { flex-basis: 168px; } .few .behind .grid { display: flex; } .few .behind figure { width: 136px; }
.group.few > figure .frame { height: 144px; }
.count { margin: 0 0 8px; font-weight: 600; color: var(--duplicate); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-top: 3px solid var(--tone); border-radius: 7px; overflow: hidden; min-width: 0; }
.frame { position: relative; display: flex; align-items: center; justify-content: center; height: 136px; background: var(--frame); }
.group > figure .frame { height: 166px; }
.frame img { max-width: 100%; max-height: 100%; display: block; }
.frame strong { position: absolute; left: 7px; top: 7px; padding: 1px 8px; border-radius: 10px; background: var(--tone); color: #fff; font-size: 12.5px;
  font-variant-numeric: tabular-nums; }
.frame em { position: absolute; right: 7px; bottom: 7px; padding: 1px 8px; border-radius: 10px; background: #8a5a00; color: #fff; font-style: normal; font-size: 12px; }
@media (prefers-color-scheme: dark) { .frame strong { color: #101214; } }
.raw { padding: 32px 12px 6px; align-self: flex-start; max-height: 100%; overflow: hidden; overflow-wrap: anywhere; color: var(--soft); font: 12px/1.4 ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; }
figcaption { padding: 7px 10px 9px; }
.id { font: 12px/1.4 ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; overflow-wrap: break-word; }
.text { margin: 3px 0; display: -webkit-box; -webkit-line-clamp: 4; -webkit-box-orient: vertical; overflow: hidden; }
.text.none { color: var(--soft); font-style: italic; } .size { font-size: 12px; color: var(--soft); }
.why { margin-top: 4px; font-size: 12.5px; color: var(--tone); }
.credits ul { columns: 2; padding-left: 18px; } .credits li { margin-bottom: 3px; }
@media (max-width: 760px) { body { padding: 16px; } .group { flex-direction: column; } .group > figure { flex-basis: auto; width: 100%; } .group.few { flex-basis: 100%; } .why { margin-top: 4px; font-size: 12.5px; color: var(--tone); }
.credits ul { columns: 1; } }
"""
