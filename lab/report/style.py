"""The page's style sheet: plain, and readable on paper, on a phone, in the dark and without colour."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1b1f24; --muted: #59616b; --grid: #d5d9de; --box: #f6f7f9;
  --s1: #1f5fa8; --s2: #b4500b; --s3: #2c7a4b; --s4: #7a4a9e; --s5: #8a6d00; --s6: #a3324a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181c; --ink: #e6e8ea; --muted: #a0a8b2; --grid: #3a4149; --box: #1d2126;
    --s1: #7db2f0; --s2: #f0a060; --s3: #77c795; --s4: #c49be6; --s5: #d9bd55; --s6: #f08ca0;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 66rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  overflow-wrap: break-word;
}
h1, h2, h3 { line-height: 1.25; margin: 0; text-wrap: balance; }
h1 { font-size: 1.75rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .8rem; padding-top: 1rem; border-top: 2px solid var(--ink); }
h3 { font-size: 1.05rem; }
p, ul, dl { margin: .5rem 0; max-width: 44rem; }
a { color: inherit; text-underline-offset: .15em; }
small { font-size: .85em; }
.summary { font-size: 1.15rem; }
.doubt { border-left: 4px solid var(--ink); padding: .3rem .8rem; background: var(--box); font-weight: 600; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; list-style: none; max-width: none; }
.cards, .charts { display: grid; gap: 1rem; grid-template-columns: minmax(0, 1fr); }
.card { border: 1px solid var(--grid); border-left: 4px solid var(--muted); padding: .8rem 1rem; min-width: 0; }
.card.supported { border-left: 6px solid var(--s3); }
.card.refuted { border-left: 6px double var(--s6); }
.card.inconclusive { border-left: 6px dashed var(--s5); }
.card.invalid { border-left: 6px dotted var(--s4); }
.card h3 { margin: .1rem 0 .4rem; }
.verdict { margin: 0; font-weight: 700; text-transform: uppercase; letter-spacing: .04em; font-size: .9rem; }
.verdict .id { font-weight: 400; text-transform: none; letter-spacing: 0; color: var(--muted); float: right; }
.figure { font-size: 1.1rem; font-variant-numeric: tabular-nums; }
.figure strong { font-size: 1.35rem; }
.card.invalid .figure { color: var(--muted); }
.card.invalid .figure strong { font-size: 1.1rem; font-weight: 400; }
.figure small { white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem .8rem; }
dt { color: var(--muted); }
#in-short h2 { margin: 1rem 0 .4rem; padding: 0; border: 0; }
#in-short dl { gap: .5rem .8rem; max-width: none; border-block: 2px solid var(--ink); padding: .6rem 0; }
#in-short dt { color: var(--ink); font-weight: 700; }
#in-short p { margin: 0 0 .2rem; max-width: none; }
#in-short small { color: var(--muted); font-variant-numeric: tabular-nums; }
dd { margin: 0; min-width: 0; }
.card dl { font-size: .92rem; }
figure { margin: 0; min-width: 0; }
figcaption, .note { color: var(--muted); font-size: .85rem; }
figcaption { max-width: 44rem; }
figcaption strong { color: var(--ink); }
.charts { margin: 1rem 0; align-items: start; }
.chart svg { display: block; width: 100%; height: auto; max-width: 32rem; }
.chart.wide svg { max-width: none; min-width: 46rem; }
.scroll { overflow-x: auto; max-width: 100%; }
.table { margin: 1.6rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 700; padding: .2rem 0; white-space: nowrap; }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; vertical-align: baseline; white-space: nowrap; }
th:first-child { text-align: left; }
thead th { vertical-align: bottom; border-bottom: 1px solid var(--ink); }
thead small { display: block; font-weight: 400; color: var(--muted); white-space: normal; }
tbody th { font-weight: 400; position: sticky; left: 0; background: var(--paper); }
tbody tr + tr > * { border-top: 1px solid var(--grid); }
.heat td { text-align: center; padding: .3rem .55rem; border: 1px solid var(--paper); }
.heat th { padding-right: .8rem; }
.heat thead th:not(:first-child), .heat tfoot td { text-align: center; padding: .3rem .55rem; }
.heat td small { display: block; font-size: .75em; }
.heat tbody tr + tr > * { border-top: 1px solid var(--paper); }
.heat tfoot th, .heat tfoot td { border-top: 2px solid var(--ink); font-weight: 400; }
.heat td { background: color-mix(in srgb, var(--s2) var(--shade, 0%), var(--paper)); print-color-adjust: exact; }
.heat .h0 { --shade: 0%; } .heat .h1 { --shade: 8%; } .heat .h2 { --shade: 18%; }
.heat .h3 { --shade: 28%; } .heat .h4 { --shade: 40%; } .heat .h5 { --shade: 52%; }
.heat .word { color: var(--muted); font-style: italic;
  background: repeating-linear-gradient(135deg, var(--paper) 0 6px, var(--box) 6px 12px); }
:focus-visible { outline: 2px solid var(--s1); outline-offset: 2px; }
@media (max-width: 30rem) {
  .card dl, #in-short dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  .card dd { margin-bottom: .35rem; }
  .verdict .id { float: none; display: block; }
  #in-short dt { margin-top: .5rem; }
  tbody th { white-space: normal; min-width: 8.5rem; }
  .heat tbody th { min-width: 5.5rem; }
  .heat th { white-space: normal; }
}
@media (min-width: 52rem) {
  .cards, .charts { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.2rem 1.6rem; }
  .wide { grid-column: 1 / -1; }
}
@media print {
  :root {
    color-scheme: light;
    --paper: #ffffff; --ink: #000000; --muted: #444444; --grid: #bbbbbb; --box: #ffffff;
    --s1: #1f5fa8; --s2: #b4500b; --s3: #2c7a4b; --s4: #7a4a9e; --s5: #8a6d00; --s6: #a3324a;
  }
  @page { margin: 15mm; }
  html { font-size: 8.5pt; }
  body { padding: 0; max-width: none; }
  nav { display: none; }
  .cards, .charts { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .wide { grid-column: 1 / -1; }
  .card, figure, tr, .table { break-inside: avoid; }
  h2, h3, caption { break-after: avoid; }
  .scroll { overflow: visible; }
  table { font-size: .85rem; }
  th, td { padding-right: .6rem; }
  tbody th { position: static; }
  .chart.wide svg { min-width: 0; }
}
"""
