"""The style sheet of the report: light and dark, phone and print, in one string."""

from __future__ import annotations

# Model colours are Okabe and Ito's hues ("Color Universal Design", 2008), darker on white and
# lighter on dark so that lines keep a contrast of 3:1; markers and dashes repeat the distinction.
# Heat levels are one hue from light to dark (reversed on dark), and each cell holds its number.
_LIGHT = """
--page:#fff;--panel:#f6f7f9;--ink:#1b1f24;--soft:#57606a;--line:#d5dae0;--grid:#e6e9ed;
--accent:#0063a0;
--m0:#0072b2;--m1:#c05000;--m2:#00795a;--m3:#a8508a;--m4:#8a6a00;--m5:#2b8fc4;--m6:#444;
--h0:#f7f9fc;--h1:#e6eef7;--h2:#d0e0f0;--h3:#afcde6;--h4:#84b3d8;--h5:#5695c5;--h6:#2f76ae;
--h7:#155890;--h8:#083a68;--low:#1b1f24;--high:#fff
"""
_DARK = """
--page:#14171b;--panel:#1c2026;--ink:#e8eaed;--soft:#a3abb5;--line:#3a414a;--grid:#2a3038;
--accent:#7cc4f5;
--m0:#5ab4ec;--m1:#f2994a;--m2:#2fc79c;--m3:#e79cc8;--m4:#e5c44a;--m5:#9fd8ff;--m6:#c8c8c8;
--h0:#1a1f26;--h1:#1d2b3a;--h2:#1f384f;--h3:#214a6b;--h4:#235f8c;--h5:#3b82b5;--h6:#66a5d3;
--h7:#98c6e8;--h8:#cfe6f8;--low:#e8eaed;--high:#0d1116
"""

STYLE = (
    f":root{{color-scheme:light dark;{_LIGHT}}}"
    f"@media screen and (prefers-color-scheme:dark){{:root{{{_DARK}}}}}"
    """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{max-width:1280px;margin:0 auto;padding:1.5rem 1.25rem 4rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .35rem;text-wrap:balance;overflow-wrap:anywhere}
h2{font-size:1.25rem;line-height:1.3;margin:2.75rem 0 .5rem;padding-top:.75rem;
border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.25rem 0 .3rem}
p,li{max-width:75ch;overflow-wrap:anywhere}
p{margin:.4rem 0}
a{color:var(--accent)}
.soft,figcaption,caption{color:var(--soft);font-size:.875rem}
.subtitle{color:var(--soft);margin:0 0 1rem;max-width:none}
nav{font-size:.875rem;margin:1rem 0 0;display:flex;flex-wrap:wrap;gap:.2rem 1rem}
.short{background:var(--panel);border-left:4px solid var(--accent);border-radius:0 6px 6px 0;
padding:.75rem 1.1rem;margin:1rem 0}
.short p{font-size:1.05rem;max-width:none}
.columns{columns:2 26rem;column-gap:2.5rem}.columns h3{break-after:avoid;margin-top:0}
.columns ul{margin-bottom:1.2rem}
.columns li{break-inside:avoid}
ul.findings{margin:.2rem 0 .8rem;padding-left:1.2rem}
ul.findings li{margin:.3rem 0}
figure{margin:.75rem 0}
figcaption{margin-top:.35rem;max-width:75ch;overflow-wrap:anywhere}
.scroll{overflow-x:auto;max-width:100%}
.tall{max-height:36rem;overflow:auto}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:1.25rem}
.grid figure,.thirds figure{margin:0;min-width:0}
.thirds{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,260px),1fr));gap:.75rem;
max-width:1080px}
.side{display:flex;flex-wrap:wrap;gap:1.25rem 2rem;align-items:flex-start}
.side>*{max-width:100%;min-width:0}
svg{display:block;max-width:100%;height:auto}
svg.plot{width:100%}svg.wide{max-width:1000px}
svg text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;
fill:var(--soft)}
svg text.title{fill:var(--ink)}
.axis{stroke:var(--line)}.gridline{stroke:var(--grid)}
.narrow{display:none}
.keys{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;font-size:.9rem;margin:.5rem 0;padding:0;
list-style:none}
.keys li{display:flex;align-items:center;gap:.4rem;max-width:100%;overflow-wrap:anywhere}
.keys svg{flex:none}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums;
overflow-wrap:normal}
caption{text-align:left;padding:.2rem 0}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap}
thead th{vertical-align:bottom;border-bottom:1px solid var(--line)}
th:first-child,td.text,th.text{text-align:left}
tbody th{font-weight:500}
td.wrap,th.wrap{white-space:normal;text-align:left;overflow-wrap:anywhere;min-width:8rem}
.name{display:inline-block;max-width:14rem;overflow:hidden;text-overflow:ellipsis;
vertical-align:bottom;unicode-bidi:isolate}
.scroll table th:first-child{position:sticky;left:0;background:var(--page);z-index:1}
.tall thead th{position:sticky;top:0;background:var(--page)}
.tall thead th:first-child{z-index:2}
.heat{border-collapse:separate;border-spacing:2px}
.heat td{padding:.1rem .2rem;min-width:2.6rem;text-align:center;border:0;border-radius:3px;
font-size:.8rem}
.heat tbody th{padding:.1rem .5rem .1rem 0;border:0;font-size:.8rem}
.heat .name{max-width:8.5rem}
.heat thead th{border:0;padding:.1rem}
.heat thead th.turned{vertical-align:bottom;padding-bottom:.3rem}
.turned span{writing-mode:vertical-rl;transform:rotate(180deg);display:inline-block;
max-height:8.3rem;overflow:hidden;text-overflow:ellipsis;font-weight:500;font-size:.8rem}
.heat th.turned{text-align:center}
.heat .count{color:var(--soft);font-weight:400}
.heat td.none,.none{color:var(--soft);font-style:italic;background:none}
.heat td.none{text-align:left}
.scale{display:flex;flex-wrap:wrap;gap:2px;font-size:.75rem;margin:.4rem 0}
.scale span{padding:.1rem .45rem;border-radius:3px}
.h0,.h1,.h2,.h3,.h4{color:var(--low)}.h5,.h6,.h7,.h8{color:var(--high)}
"""
    + "".join(f".h{i}{{background:var(--h{i})}}" for i in range(9))
    + "".join(f".m{i}{{--c:var(--m{i})}}" for i in range(7))
    + """
.stroke{stroke:var(--c);fill:none}.fill{fill:var(--c);stroke:none}.dots{stroke:var(--c);fill:none}
.edge{stroke:var(--page);fill:none}
.hollow{stroke:var(--c);fill:var(--page)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr));gap:.75rem;
margin:.75rem 0}
.card{background:var(--panel);border-radius:8px;padding:.75rem;font-size:.85rem;min-width:0;
overflow-wrap:anywhere;line-height:1.4}
.pair{display:grid;grid-template-columns:1fr auto 1fr;gap:.4rem;align-items:center}
.pair img{width:100%;max-width:112px;height:auto;display:block;margin:0 auto .3rem;
border-radius:3px;image-rendering:pixelated}
.pair div{text-align:center;min-width:0}
tr.marked th,.scroll table tr.marked th:first-child,tr.marked td{background:var(--panel);
font-weight:700}
tr.marked th:first-child{border-left:4px solid var(--m1)}
pre{overflow-x:auto;background:var(--panel);border-radius:6px;padding:.75rem 1rem;
font-size:.8rem;line-height:1.5}
.arrow{font-size:1.2rem;color:var(--soft)}
.card p{margin:.35rem 0 0}
summary{cursor:pointer;color:var(--accent);margin:.75rem 0 .4rem}
@media (max-width:640px){
body{font-size:15px}main{padding:1rem .9rem 3rem}h1{font-size:1.4rem}
.wide{display:none}.narrow{display:block}
.name{max-width:8rem}.heat .name{max-width:5.5rem}
}
@media print{
body{font-size:10pt}main{max-width:none;padding:0}
nav{display:none}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
figure,.card,tr,.short,h2,h3{break-inside:avoid}h2,h3{break-after:avoid}
.wide{display:block}.narrow{display:none}
.scroll,.tall,pre{overflow:visible;max-height:none}pre{white-space:pre-wrap}
.scroll table th:first-child,.tall thead th{position:static}
table,figcaption,.heat td,.heat tbody th,.turned span{font-size:7.5pt}
th,td{padding:.15rem .35rem}.heat td{min-width:1.9rem}
.grid,.thirds{grid-template-columns:repeat(3,1fr);gap:.6rem}
.cards{grid-template-columns:repeat(3,1fr)}
}
"""
).replace("\n", "")
