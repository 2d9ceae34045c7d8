"""The look of the report: one style sheet, light and dark, on screen and on paper."""

# Curves are told apart by hue and by lightness (Okabe and Ito's palette, deepened for white paper, lifted for a dark
# screen).
CSS = """
:root{--paper:#fbfaf8;--card:#fff;--ink:#1c1b1a;--soft:#6d6a66;--line:#e6e2dc;--wash:#f3f0ea;--accent:#0b6e99;
--good:#147a4b;
--bad:#c2410c;--grey:#8d8a86;--c0:#0b6e99;--c1:#d1700a;--c2:#147a4b;--c3:#a63a79;--c4:#7a6a00;--c5:#5b50c4;
--c6:#8a8580;--c7:#b3261e}
@media (prefers-color-scheme:dark){:root{--paper:#151517;--card:#1d1d20;--ink:#ecebe8;--soft:#a09d98;--line:#313135;
--wash:#252529;
--accent:#5bb8e0;--good:#4cc38a;--bad:#ff8a57;--grey:#77757a;--c0:#5bb8e0;--c1:#f3a447;--c2:#4cc38a;--c3:#e283b8;
--c4:#d6c44a;
--c5:#a79ff5;--c6:#a5a29d;--c7:#ff7b72}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.55 ui-sans-serif,system-ui,-apple-system,"Segoe UI",
Roboto,
"Helvetica Neue","Liberation Sans",Arial,sans-serif;font-variant-numeric:tabular-nums}
main{max-width:1140px;margin:0 auto;padding:44px 28px 72px}
header{border-bottom:1px solid var(--line);padding-bottom:26px;margin-bottom:8px}
.over{color:var(--accent);font-size:12px;font-weight:650;letter-spacing:.09em;text-transform:uppercase;margin:0 0 6px}
h1{font-size:32px;line-height:1.15;letter-spacing:-.018em;margin:0 0 8px;font-weight:680;overflow-wrap:anywhere}
.sub{color:var(--soft);margin:0}
h2{font-size:20px;letter-spacing:-.01em;margin:46px 0 4px;font-weight:660}
h3{font-size:14px;margin:24px 0 8px;font-weight:640}
.lead{color:var(--soft);margin:0 0 16px;max-width:74ch}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:12px;margin:26px 0 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.tile span{display:block;color:var(--soft);font-size:12.5px}
.tile b{display:block;font-size:29px;font-weight:640;letter-spacing:-.02em;line-height:1.25}
.tile b small{font-size:15px;font-weight:500;color:var(--soft);letter-spacing:0}
.tile em{font-style:normal;font-size:12.5px;color:var(--soft)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;background:var(--card);border:1px solid var(--line);font-size:14px}
th,td{padding:8px 12px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}
th{font-weight:600;color:var(--soft);font-size:12.5px;background:var(--wash)}
tbody tr:last-child td{border-bottom:0}
tr.floor td{color:var(--soft);font-style:italic}
td.text{text-align:left;white-space:normal;overflow-wrap:break-word}
th.text{text-align:left}
td b{font-weight:660}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(318px,1fr));gap:14px}
figure{margin:0}
.chart{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px 10px}
.chart figcaption{font-weight:620;font-size:13.5px;margin-bottom:4px}
.chart small{color:var(--soft);font-weight:400}
.chart svg{display:block;width:100%;height:auto}
.grid{stroke:var(--line);stroke-width:1}
.tick{fill:var(--soft);font-size:10.5px}
.line,.raw{fill:none;stroke-linejoin:round;stroke-linecap:round}
.line{stroke-width:2}
.raw{stroke-width:1;opacity:.28}
.level{stroke-width:1.2;stroke-dasharray:4 4;opacity:.8}
.c0{stroke:var(--c0)}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}.c3{stroke:var(--c3)}.c4{stroke:var(--c4)}
.c5{stroke:var(--c5)}
.c6{stroke:var(--c6)}.c7{stroke:var(--c7)}
.dot{fill:var(--card);stroke-width:1.6}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:12px;color:var(--soft);margin-top:4px}
.key i{display:inline-block;width:14px;height:3px;border-radius:2px;vertical-align:middle;margin-right:5px}
.key.c0 i{background:var(--c0)}.key.c1 i{background:var(--c1)}.key.c2 i{background:var(--c2)}
.key.c3 i{background:var(--c3)}
.key.c4 i{background:var(--c4)}.key.c5 i{background:var(--c5)}.key.c6 i{background:var(--c6)}
.key.c7 i{background:var(--c7)}
.key b{color:var(--ink);font-weight:600}
.queries{display:grid;grid-template-columns:repeat(auto-fill,minmax(500px,1fr));gap:14px}
.query{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px 14px}
.query p{margin:0 0 10px;display:flex;gap:12px;justify-content:space-between;align-items:baseline}
.query q{font-size:15px;quotes:"\\201C" "\\201D"}
.rank{color:var(--soft);font-size:12.5px;white-space:nowrap}
.rank.top{color:var(--good);font-weight:620}
.strip{display:grid;grid-template-columns:repeat(5,1fr) 1px 1fr;gap:7px;align-items:start}
.strip.found{grid-template-columns:repeat(5,1fr)}
.strip hr{border:0;margin:0;width:1px;height:100%;background:var(--line)}
img{display:block;width:100%;height:auto;border-radius:5px}
.pic{position:relative}
.pic svg{position:absolute;inset:0;width:100%;height:100%;overflow:hidden;border-radius:5px}
.strip .pic{border-radius:7px;padding:2px;border:2px solid transparent}
.strip .right{border-color:var(--good)}
.strip .missed{border:2px dashed var(--good)}
.boxes,.masks{display:grid;grid-template-columns:repeat(auto-fill,minmax(164px,1fr));gap:16px 14px}
.boxes figcaption,.masks figcaption{font-size:13px;line-height:1.4;margin-top:6px}
.boxes figcaption span{color:var(--soft);font-size:12px;display:block}
.box{fill:none;stroke-width:2.2;vector-effect:non-scaling-stroke}
.halo{fill:none;stroke:#fff;stroke-width:4.4;opacity:.75;vector-effect:non-scaling-stroke}
.true{stroke:#147a4b;stroke-dasharray:6 4}.predicted{stroke:#d6450b}
.patch{fill:#8b8b8b;shape-rendering:crispEdges}
.how{display:flex;gap:18px;font-size:12.5px;color:var(--soft);margin:0 0 12px}
.how i{display:inline-block;width:18px;height:0;border-top:2.4px solid;vertical-align:middle;margin-right:6px}
.how .t{border-color:var(--good);border-top-style:dashed}.how .p{border-color:var(--bad)}
.words{font-size:14px;line-height:1.9;margin:0 0 8px;padding:10px 14px;background:var(--card);
border:1px solid var(--line);
border-radius:8px;overflow-wrap:anywhere}
.masks .words{padding:0;border:0;background:none;margin:6px 0 0;font-size:13px;line-height:1.75}
.hid{background:var(--grey);color:transparent;border-radius:3px;padding:0 .35em;margin:0 .12em;user-select:none}
.swap{background:var(--wash);border-bottom:2px solid var(--c1);border-radius:3px;padding:0 .2em}
details{margin-top:12px;border:1px solid var(--line);border-radius:10px;background:var(--card)}
summary{cursor:pointer;padding:10px 14px;font-weight:600;font-size:14px}
pre{margin:0;padding:4px 16px 16px;font:12.5px/1.55 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",
monospace;
overflow-x:auto;white-space:pre}
code{font:12.5px ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(330px,1fr));gap:14px;align-items:start}
footer{margin-top:52px;color:var(--soft);font-size:12.5px;border-top:1px solid var(--line);padding-top:14px}
@media (max-width:620px){main{padding:26px 16px 48px}.queries{grid-template-columns:1fr}h1{font-size:26px}}
@media print{:root{--paper:#fff;--card:#fff;--ink:#000;--soft:#555;--line:#ccc;--wash:#f4f4f4;--accent:#0b6e99;
--good:#147a4b;
--bad:#c2410c;--c0:#0b6e99;--c1:#d1700a;--c2:#147a4b;--c3:#a63a79;--c4:#7a6a00;--c5:#5b50c4;--c6:#8a8580;--c7:#b3261e}
body{font-size:11pt;-webkit-print-color-adjust:exact;print-color-adjust:exact}main{max-width:none;padding:0}
.chart,.query,.tile,.boxes figure,.masks figure,tr{break-inside:avoid}h2,h3{break-after:avoid}
.charts{grid-template-columns:repeat(3,1fr)}details:not([open]){display:none}}
"""
