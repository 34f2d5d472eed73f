"""The CSS of the report's page: light and dark mode, wide and narrow screens. All inside `.clipreid`, for notebooks."""

CSS = """
.clipreid { --ink: #1c2128; --soft: #5a6370; --paper: #ffffff; --card: #f5f7f9; --line: #d8dee5;
  --right: #0b7a53; --wrong: #c8371b; --main: #1f5fbf; --junk: #7a828c;
  color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
@media (prefers-color-scheme: dark) { .clipreid {
  --ink: #e4e8ed; --soft: #9aa5b1; --paper: #14181d; --card: #1c2229;
  --line: #343c46; --right: #3fc48f; --wrong: #ff7a5c; --main: #78aefc; --junk: #8a939e; } }
div.clipreid { padding: 10px 14px; }
body.clipreid { margin: 0; -webkit-text-size-adjust: 100%; }
.clipreid main, .clipreid header, .clipreid footer, .clipreid .bar > div { max-width: 1180px; margin: 0 auto;
  padding: 0 20px; }
.clipreid h1 { font-size: 1.7rem; line-height: 1.2; margin: 28px 0 4px; overflow-wrap: anywhere; }
.clipreid h2 { font-size: 1.35rem; margin: 44px 0 10px; overflow-wrap: anywhere; }
.clipreid h3 { font-size: 1.08rem; margin: 32px 0 4px; }
.clipreid h4 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
.clipreid p { margin: 4px 0 12px; max-width: 75ch; }
.clipreid .soft { color: var(--soft); }
.clipreid a { color: var(--main); }
.clipreid :focus-visible { outline: 3px solid var(--main); outline-offset: 3px; border-radius: 4px; }
.clipreid .skip { position: absolute; left: -999px; }
.clipreid .skip:focus { left: 12px; top: 8px; background: var(--paper); padding: 6px 10px; z-index: 3; }
.clipreid .bar { position: sticky; top: 0; z-index: 2; background: var(--paper); border-bottom: 1px solid var(--line);
  margin-top: 14px; overflow-x: auto; }
.clipreid .bar > div { display: flex; gap: 4px 20px; padding-top: 8px; padding-bottom: 8px; white-space: nowrap; }
.clipreid .bar a { text-decoration: none; }
.clipreid .bar a:hover { text-decoration: underline; }
.clipreid .scroll { overflow-x: auto; }
.clipreid table { border-collapse: collapse; font-variant-numeric: tabular-nums; background: none; }
.clipreid th, .clipreid td { text-align: right; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; white-space: nowrap; background: none; }
.clipreid th:first-child { text-align: left; }
.clipreid thead th { font-weight: 600; color: var(--soft); }
.clipreid tbody th { font-weight: 500; }
.clipreid tr.main th, .clipreid tr.main td { font-weight: 650; }
.clipreid td small { display: block; font-weight: 400; color: var(--soft); }
.clipreid dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 14px 0; max-width: 90ch; }
.clipreid dt { color: var(--soft); }
.clipreid dd { margin: 0; overflow-wrap: anywhere; }
.clipreid .figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); gap: 20px; }
.clipreid figure { margin: 0; }
.clipreid .figures figure { background: var(--card); border-radius: 10px; padding: 12px 14px; max-width: 560px; }
.clipreid figcaption { color: var(--soft); font-size: .87rem; margin-top: 6px; }
.clipreid .figures figcaption { margin: 0 0 8px; }
.clipreid figcaption b { color: var(--ink); }
.clipreid svg { width: 100%; height: auto; display: block; }
.clipreid img { display: block; max-width: 100%; height: auto; border-radius: 3px; background: var(--card); }
.clipreid .pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr)); gap: 16px;
  padding: 0; margin: 10px 0; list-style: none; }
.clipreid .pairs li { background: var(--card); border-radius: 10px; padding: 12px; }
.clipreid .two { display: flex; gap: 10px; }
.clipreid .two > div { flex: 1 1 0; min-width: 0; }
.clipreid .chips { display: flex; flex-wrap: wrap; gap: 6px; padding: 0; margin: 8px 0 16px; list-style: none; }
.clipreid .chips li { max-width: 100%; }
.clipreid .chips a { overflow-wrap: anywhere; display: inline-block;
  padding: 2px 10px; border: 1px solid var(--line); border-radius: 99px;
  text-decoration: none; font-size: .87rem; font-variant-numeric: tabular-nums; }
.clipreid .chips a:hover { border-color: var(--main); }
.clipreid article { border-top: 1px solid var(--line); padding: 14px 0 10px; scroll-margin-top: 44px; }
.clipreid section { scroll-margin-top: 44px; }
.clipreid .head { display: flex; flex-wrap: wrap; gap: 2px 18px; align-items: baseline; margin-bottom: 8px; }
.clipreid .head .step { margin-left: auto; font-size: .87rem; }
.clipreid .list { display: flex; gap: 22px; }
.clipreid .asked { display: flex; gap: 8px; flex: 0 1 auto; max-width: 40%; align-items: flex-start; }
.clipreid .asked > div { min-width: 0; }
.clipreid .list ol { display: flex; flex-wrap: wrap; gap: 12px 8px; list-style: none; margin: 0; padding: 0 4px 8px;
  flex: 1; min-width: 0; align-items: flex-start; }
.clipreid .list li { flex: none; margin: 0; min-width: 84px; max-width: 100%; }
.clipreid .crop { width: fit-content; max-width: 100%; box-sizing: border-box;
  border: 3px solid var(--junk); border-radius: 6px; overflow: hidden; }
.clipreid .crop img { border-radius: 0; }
.clipreid .right .crop { border-color: var(--right); }
.clipreid .wrong .crop { border-color: var(--wrong); }
.clipreid .junk .crop { border-style: dashed; }
.clipreid .junk img { opacity: .45; filter: grayscale(1); }
.clipreid .tag { display: block; font-size: .8rem; line-height: 1.35; color: var(--soft); margin-bottom: 3px;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.clipreid .tag b { font-size: .95rem; }
.clipreid .under { margin: 3px 0 0; font-size: .76rem; width: 0; min-width: 100%; white-space: normal;
  overflow-wrap: anywhere; }
.clipreid p.under { font-size: .87rem; }
.clipreid .legend { display: flex; flex-wrap: wrap; gap: 2px 18px; max-width: none; }
.clipreid .bar, .clipreid ol, .clipreid .scroll { scrollbar-width: thin; }
.clipreid .right .mark, .clipreid .good { color: var(--right); }
.clipreid .wrong .mark, .clipreid .bad { color: var(--wrong); }
.clipreid .junk .mark { color: var(--junk); }
.clipreid footer { border-top: 1px solid var(--line); margin-top: 40px; padding-top: 14px; padding-bottom: 40px; }
@media (max-width: 700px) {
  .clipreid main, .clipreid header, .clipreid footer, .clipreid .bar > div { padding-left: 14px; padding-right: 14px; }
  .clipreid .list { flex-direction: column; gap: 10px; }
  .clipreid .asked { max-width: 100%; }
  .clipreid .list ol { width: 100%; box-sizing: border-box; flex-wrap: nowrap; overflow-x: auto;
    padding-right: 28px; mask-image: linear-gradient(to right, #000 calc(100% - 28px), transparent); }
  .clipreid .list li { max-width: none; }
  .clipreid dl { grid-template-columns: 1fr; gap: 0; }
  .clipreid dd { margin-bottom: 6px; }
}
@media print { .clipreid .bar, .clipreid .chips, .clipreid .step { display: none !important; }
  .clipreid article, .clipreid figure { break-inside: avoid; } .clipreid .list ol { flex-wrap: wrap; } }
"""
