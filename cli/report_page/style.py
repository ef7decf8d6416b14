"""How the page looks: light and dark, on paper, and without colour."""

# Colours of Okabe and Ito (jfly.uni-koeln.de/color), which people with colour-blindness tell apart; what needs more
# than eight repeats them with a hatch.
TERM_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#999999", "#d55e00", "#f0e442", "#56b4e9")

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --quiet: #59636e; --line: #d1d9e0;
  --panel: #f3f5f7; --idle: #e4e8ec; --link: #0550ae; --good: #116329; --bad: #a40e26;
  --forward: #8ecdf2; --backward: #c75400; --reduce: #7b5ea7; --tail: #009e73; --mark: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e6e9ec; --quiet: #9ca6b0; --line: #39424c;
  --panel: #1d232a; --idle: #2a323b; --link: #79b8ff; --good: #63d188; --bad: #ff8f8f;
  --forward: #8ecdf2; --backward: #c75400; --reduce: #a98bd6; --tail: #20b98b; --mark: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 24px 28px 64px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 27px; line-height: 1.2; margin: 8px 0; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 44px 0 8px; padding-top: 12px; border-top: 1px solid var(--line); }
h3 { font-size: 16px; margin: 24px 0 4px; }
p { margin: 6px 0; max-width: 90ch; overflow-wrap: anywhere; }
a { color: var(--link); }
nav { margin: 16px 0; font-size: 14px; line-height: 1.9; }
nav a { margin-right: 14px; white-space: nowrap; }
.quiet, .notes, figcaption { color: var(--quiet); }
.notes, figcaption { font-size: 13px; }
.notes p { max-width: none; }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
.lead { font-size: 16px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin: 16px 0; }
.tile { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: 10px 14px; }
.tile b { display: block; font-size: 22px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile span { display: block; font-size: 13px; color: var(--quiet); }
dl { margin: 10px 0; }
dl div { display: grid; grid-template-columns: 160px 1fr; gap: 12px; padding: 3px 0; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 8px 0; }
.scroll:focus-visible, summary:focus-visible, a:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px 4px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { font-weight: 600; color: var(--quiet); vertical-align: bottom; }
tbody th { font-weight: 400; white-space: nowrap; }
th.num, td.num { text-align: right; } td.num { white-space: nowrap; }
details { margin: 10px 0; } summary { cursor: pointer; color: var(--link); }
figure { margin: 12px 0; }
svg { display: block; font: 11px system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif; fill: var(--ink); }
td > svg { margin-top: 4px; }
svg.swatch { display: inline-block; vertical-align: -2px; margin-right: 7px; }
svg .quiet { fill: var(--quiet); }
svg .halo { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; }
svg .mid { text-anchor: middle; } svg .end { text-anchor: end; }
svg .grid { stroke: var(--line); fill: none; }
svg .limit { stroke: var(--ink); stroke-dasharray: 6 4; stroke-width: 1.5; fill: none; }
svg .frontier { stroke: var(--mark); stroke-dasharray: 3 3; stroke-width: 1.5; fill: none; }
svg .band { stroke: var(--mark); stroke-width: 3; stroke-linecap: round; opacity: .55; }
svg .dot { fill: var(--mark); stroke: var(--paper); }
svg .hollow { fill: var(--paper); stroke: var(--mark); stroke-width: 2; }
svg .leader { stroke: var(--quiet); fill: none; }
svg .bar { fill: var(--mark); }
svg .stack { stroke: var(--paper); stroke-width: .5; }
svg .row { fill: var(--idle); }
svg .forward { stroke: var(--forward); } svg .backward { stroke: var(--backward); }
svg .reduce { stroke: var(--reduce); } svg .tail { stroke: var(--tail); }
svg .in-forward, svg .in-backward { text-anchor: middle; pointer-events: none; paint-order: stroke; stroke-width: 2px; }
svg .in-forward { fill: #0b2030; stroke: #c9e8fb; } svg .in-backward { fill: #ffffff; stroke: #8a3a00; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 8px 0; font-size: 13px; list-style: none; padding: 0; }
.rows { display: flex; flex-wrap: wrap; gap: 0 24px; } .rows > p { flex-basis: 100%; }
.rows h3 { font-size: 14px; margin-top: 12px; }
.nodes { display: flex; flex-wrap: wrap; gap: 10px; margin: 6px 0 18px; align-items: stretch; }
.node { border: 1px solid var(--line); border-radius: 6px; padding: 6px 8px 8px; background: var(--panel); }
.node h4 { margin: 0 0 5px; font-size: 13px; font-weight: 600; }
.gpus { display: grid; grid-template-columns: repeat(4, minmax(72px, auto)); gap: 4px; }
.gpu { border: 1px solid var(--line); border-radius: 4px; padding: 2px 6px; font-size: 12px; line-height: 1.35;
  background: var(--paper); }
.gpu.odd { background: var(--idle); }
.gpu b { display: block; font-weight: 600; } .gpu span { display: block; color: var(--quiet); white-space: nowrap; }
.more { align-self: center; color: var(--quiet); max-width: 26ch; }
@media (max-width: 640px) { body { padding: 12px 14px 40px; } dl div { grid-template-columns: 1fr; gap: 0; }
  .gpus { grid-template-columns: repeat(2, minmax(72px, auto)); } }
@media print { :root { color-scheme: light; --paper: #ffffff; --ink: #000000; --quiet: #444444; --line: #bbbbbb;
  --panel: #ffffff; --idle: #e4e8ec; --link: #000000; --good: #116329; --bad: #a40e26; --mark: #0072b2; }
  body { max-width: none; padding: 0; font-size: 12px; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  nav { display: none; } .scroll { overflow: visible; } .rows { display: block; } svg { max-width: 100%; height: auto; }
  table { font-size: 9px; } th, td { padding: 2px 5px 2px 0; } tr, .tile, .node { break-inside: avoid; }
  h2, h3, summary { break-after: avoid; } details::details-content { content-visibility: visible; height: auto; } }
"""


def term_style(place: int) -> tuple[str, bool]:
    """Return the colour of the term at a place of the list, and whether it is hatched."""
    return TERM_COLOURS[place % len(TERM_COLOURS)], place // len(TERM_COLOURS) % 2 == 1
