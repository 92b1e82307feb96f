"""The page's style sheet: light and dark, from a wide screen down to a phone."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f7f7f5; --card: #ffffff; --ink: #1d1d1b; --muted: #66665f; --grid: #e7e6e1;
  --edge: #deddd7; --band0: #eef2f8; --band1: #ffffff; --line1: #2463c4; --line2: #b4560a;
  --line3: #6d4aa8; --good: #23774a; --bad: #bb3327; --code: #efeeea;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #141413; --card: #1e1e1c; --ink: #ecebe6; --muted: #a5a49c; --grid: #33332f;
    --edge: #373732; --band0: #252a33; --band1: #1e1e1c; --line1: #77abff; --line2: #f0a25c;
    --line3: #b79cf0; --good: #6fca94; --bad: #f58b80; --code: #2a2a27;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 1040px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.35rem; margin: 44px 0 12px; padding-top: 16px;
  border-top: 1px solid var(--edge); }
h3 { font-size: 1.05rem; margin: 30px 0 10px; }
h4 { font-size: .8rem; margin: 16px 0 8px; color: var(--muted); text-transform: uppercase;
  letter-spacing: .05em; }
p { margin: 8px 0; max-width: 68ch; }
a { color: var(--line1); }
small, .muted { color: var(--muted); }
code, pre { font: .85em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
code { background: var(--code); border-radius: 4px; padding: 1px 5px; }
pre { background: var(--card); border: 1px solid var(--edge); border-radius: 8px; padding: 12px;
  overflow-x: auto; overflow-wrap: normal; margin: 8px 0; }
nav { margin: 10px 0 0; display: flex; flex-wrap: wrap; gap: 4px 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(138px, 1fr)); gap: 10px; }
.tile { background: var(--card); border: 1px solid var(--edge); border-radius: 10px;
  padding: 10px 14px 12px; }
.tile b { display: block; font-size: 1.4rem; line-height: 1.25; font-weight: 650;
  white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--muted); font-size: .8rem; display: block; line-height: 1.35; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr));
  gap: 14px; }
figure { margin: 0; }
.chart { background: var(--card); border: 1px solid var(--edge); border-radius: 10px;
  padding: 12px 12px 8px; }
.chart figcaption { display: flex; flex-wrap: wrap; gap: 2px 14px; align-items: baseline;
  padding: 0 4px 6px; font-size: .92rem; }
.legend { display: flex; gap: 14px; color: var(--muted); font-size: .82rem; }
.key::before { content: ""; display: inline-block; width: 16px; height: 3px; border-radius: 2px;
  background: var(--c); margin-right: 6px; vertical-align: middle; }
svg { display: block; width: 100%; height: auto; font-family: inherit; }
.hidden { position: absolute; width: 0; height: 0; }
svg text { fill: var(--muted); font-size: 11.5px; }
svg .value { fill: var(--ink); font-size: 12px; font-variant-numeric: tabular-nums; }
svg .inside { fill: var(--card); font-weight: 600; }
.dashed::before { content: ""; display: inline-block; height: 13px; margin-right: 6px;
  border-left: 2px dashed var(--ink); vertical-align: -2px; }
svg .stage { font-size: 11px; }
svg .grid { stroke: var(--grid); fill: none; }
svg .axis { stroke: var(--muted); fill: none; }
.line1 { --c: var(--line1); } .line2 { --c: var(--line2); } .line3 { --c: var(--line3); }
svg .line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
svg .spread { fill: var(--c); fill-opacity: .18; }
svg .dot { fill: var(--c); stroke: var(--card); stroke-width: 1; }
svg .bar { fill: var(--c); }
svg .whisker { stroke: var(--ink); fill: none; stroke-width: 1.2; }
svg .published { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 3 2; }
svg .band0 { fill: var(--band0); } svg .band1 { fill: var(--band1); }
svg .right { fill: var(--line1); } svg .wrong { fill: var(--bad); }
svg .frame { fill: none; stroke: var(--edge); }
svg .count { fill: var(--ink); font-size: 11px; font-variant-numeric: tabular-nums; }
svg .strong { fill: var(--card); font-weight: 600; }
.beside { display: flex; flex-wrap: wrap; gap: 0 48px; align-items: flex-start; }
.beside > .wide:first-child { flex: 0 1 470px; min-width: min(100%, 320px); }
.wide { overflow-x: auto; max-width: 100%; margin: 8px 0; }
table { border-collapse: collapse; font-size: .9rem; min-width: 340px; }
caption { text-align: left; font-weight: 600; padding: 6px 0; }
th, td { text-align: left; padding: 5px 18px 5px 0; border-bottom: 1px solid var(--edge);
  vertical-align: top; white-space: nowrap; }
th { color: var(--muted); font-weight: 500; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 3px 18px; margin: 8px 0;
  font-size: .92rem; }
dt { color: var(--muted); } dd { margin: 0; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 10px; }
.sample { background: var(--card); border: 1px solid var(--edge); border-radius: 8px;
  overflow: hidden; font-size: .82rem; line-height: 1.35; }
.sample img, .blank { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; }
.sample .pixelated { image-rendering: pixelated; }
.blank { background: var(--code); color: var(--muted); display: grid; place-items: center; }
.sample figcaption { padding: 6px 8px 8px; }
.sample .truth { display: block; color: var(--muted); }
.mark { font-weight: 700; } .good .mark { color: var(--good); } .bad .mark { color: var(--bad); }
details { margin: 14px 0; } summary { cursor: pointer; color: var(--muted); }
@media (max-width: 520px) {
  main { padding: 18px 12px 40px; }
  .chart { padding: 10px 6px 6px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  th, td { padding-right: 12px; }
}
"""
