"""How pages of results look: light or dark as the reader's system is, no other files, no network."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ink: #22303c; --soft: #5d6f80; --line: #dde3e8; --paper: #fff; --tint: #f6f8fa;
        --good: #1a7f4b; --bad: #b3402e; --plain: #9aa5b1; --text-arm: #3d7ea6; --ours: #e07a3f; --ours-2: #b8860b;
        --random: #c3b8a5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --soft: #9fb0c0; --line: #33414e; --paper: #17202a;
        --tint: #1e2a36; --good: #58c48c; --bad: #ec8573; --plain: #7b8896; --text-arm: #6fb3dc; --ours: #f0935a;
        --ours-2: #e3b341; --random: #8d8271; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
       font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
p { margin: .25rem 0 1rem; max-width: 60rem; } .soft { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: 1rem; margin: 1.5rem 0; }
.card { border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.1rem; background: var(--tint); }
.card h3 { margin: 0; font-size: 1rem; } .card .big { font-size: 1.9rem; font-weight: 650; line-height: 1.25; }
.card dl { display: grid; grid-template-columns: 1fr auto; gap: .1rem .75rem; margin: .5rem 0 0; font-size: .9rem; }
.card dt { color: var(--soft); } .card dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(34rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: .6rem; padding: .8rem; background: var(--tint); }
figure svg { display: block; height: auto; } figcaption { color: var(--soft); font-size: .88rem; margin-top: .4rem; }
figure h3 { margin: 0 0 .3rem; font-size: 1rem; }
img { width: 100%; border: 1px solid var(--line); border-radius: .6rem; background: #fff; }
.findings { padding-left: 1.2rem; max-width: 62rem; } .findings li { margin: .35rem 0; }
.note { border-left: 4px solid var(--ours); padding: .5rem .9rem; background: var(--tint); max-width: 62rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th, td { text-align: left; vertical-align: top; padding: .5rem .7rem; border-bottom: 1px solid var(--line); }
.figures td { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.figures { font-size: .84rem; } .figures th { white-space: nowrap; } .figures td, .figures th { padding: .4rem .5rem; }
.legend { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem; }
.legend dt { font-weight: 600; } .legend dd { margin: 0; color: var(--soft); }
thead th { position: sticky; top: 0; background: var(--paper); } tbody th { font-weight: 500; }
.items tbody th { min-width: 16rem; } .items td { min-width: 9rem; }
tfoot td, tfoot th { font-weight: 650; background: var(--tint); }
.right::before { content: "\\2713\\00a0"; color: var(--good); font-weight: 700; }
.wrong::before { content: "\\2717\\00a0"; color: var(--bad); font-weight: 700; } .wrong { color: var(--soft); }
small { color: var(--soft); display: block; } summary { cursor: pointer; font-weight: 600; }
"""


def document(title: str, body: str) -> str:
    """A whole HTML page around `body`; `title` must be escaped already."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""
