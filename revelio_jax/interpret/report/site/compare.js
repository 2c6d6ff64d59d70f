// Two SAEs side by side: totals, then each latent with its best match in the other SAE.
"use strict";

const WAYS = {
  decoder: ["decoder cosine", "the cosine of decoder directions"],
  samples: ["shared samples", "the Jaccard index of the top samples"],
};

(async () => {
  const facts = await startPage("compare");
  if (!facts) return;
  document.title = `${facts.name} compared`;
  const main = document.querySelector("main");
  if (!facts.compare.length) {
    main.append(el("h1", {}, "Compare"), el("p.empty", {}, "This report has no other run to compare with. To add one, run ",
      el("code", {}, "revelio report --config FILE --compare runs/OTHER"), "."));
    return;
  }
  onKey(["j", "k", "ArrowDown", "ArrowUp"], "next or previous row", (event) => table?.key(event));
  let table;
  const draw = async () => {
    const state = new URLSearchParams(location.hash.slice(1));
    const index = Math.max(0, Math.min(facts.compare.length - 1, Number(state.get("with")) || 0));
    const other = facts.compare[index];
    const data = await load(`compare/${index}/facts`).catch(fail);
    if (!data) return;
    const change = (part) => {
      for (const [key, text] of Object.entries(part)) state.set(key, text);
      history.replaceState(null, "", `#${state}`);
      draw();
    };
    const way = other.ways.includes(state.get("by")) ? state.get("by") : other.ways[0];
    const list = way ? matchList(facts, other, index, way, state, change) : null;
    main.replaceChildren(
      el("div.lead", {},
        el("h1", {}, el("span.mark.a", {}, "A"), facts.name, el("span.of", {}, " and "), el("span.mark.b", {}, "B"), other.name),
        chooser("With", facts.compare.map(({ name, site }, i) => [String(i), `${name} (${site})`]), (key) => change({ with: key }), String(index))),
      sides(facts, other, data),
      el("div.halves", {},
        el("section.panel", {}, histogram({
          edges: data.density[0].edges, tick: powerTick, unit: "latents", shares: true,
          series: [{ counts: data.density[0].counts, name: "A", look: "a" }, { counts: data.density[1].counts, name: "B", look: "b" }],
          caption: [el("h2", {}, "How often latents fire"), key()],
        })),
        data.purity.map(([ours, theirs]) => el("section.panel", {}, histogram({
          edges: ours.edges, tick: (edge, exactly) => (exactly || Math.round(edge * 100) % 20 === 0 ? fixed(edge) : null), unit: "latents", shares: true,
          series: [{ counts: ours.counts, name: "A", look: "a" }, { counts: theirs.counts, name: "B", look: "b" }],
          caption: [el("h2", {}, `Purity: ${ours.label}`), key()],
        }))),
        data.ways.map(([name, { edges, counts, median }]) => el("section.panel", {}, histogram({
          edges, series: [{ counts, look: "a" }], unit: "latents of A",
          tick: (edge, exactly) => (exactly || Math.round(edge * 100) % 20 === 0 ? fixed(edge) : null),
          caption: [el("h2", {}, `Best match by ${WAYS[name][0]}`), el("p.note", {}, `Latents of A by ${WAYS[name][1]} with their best match among the firing latents of B. Median: ${fixed(median)}.`,
            name === "decoder" && facts.site !== other.site ? " The hook points differ: decoder directions are comparable only within one residual stream." : "")],
        })))),
      list ? list.node : el("section.panel", {}, el("h2", {}, "Matches"),
        empty("These latents cannot be matched: the two runs read different stores, and their decoders have different widths or one has none.")));
    table = list?.start();
  };
  addEventListener("hashchange", draw);
  draw();
})();

function key() {
  return el("p.note.key", {}, el("span.mark.a", {}, "A"), " and ", el("span.mark.b", {}, "B"), " overlaid; bars are shares of the counted latents of each.");
}

function sides(facts, other, { numbers: [ours, theirs] }) {
  const mean = (of) => (of?.[1] == null ? NONE : `${fixed(of[1])} (${fixed(of[2])}–${fixed(of[3])})`);
  const dead = ({ latents, firing }) => `${count(latents - firing)} (${percent((latents - firing) / latents)})`;
  const rows = [
    ["Hook point", el("code", {}, facts.site), el("code", {}, other.site)],
    ["Model", facts.model, other.model],
    ["Latents", count(ours.latents), count(theirs.latents)],
    ["Width", count(facts.d), count(other.d)],
    ["k", facts.k ?? "none", other.k ?? "none"],
    ["L0", value(ours.l0), value(theirs.l0)],
    ["Dead", dead(ours), dead(theirs)],
    ["Median frequency", percent(ours.frequency), percent(theirs.frequency)],
    ...ours.purity.map((one) => [`Purity: ${one[0]}`, mean(one), mean(theirs.purity.find(([name]) => name === one[0]))]),
    ["Rows", count(facts.rows), count(other.rows)],
    ["Samples", count(facts.samples), count(other.samples)],
  ];
  return el("section.panel", { "aria-labelledby": "sides" },
    el("h2.hidden", { id: "sides" }, "Side by side"),
    el("div.scroll", { tabindex: 0, role: "region", "aria-label": "Side by side" },
      el("table.sides", {},
        el("thead", {}, el("tr", {}, el("td"), el("th", { scope: "col" }, el("span.mark.a", {}, "A"), facts.name),
          el("th", { scope: "col" }, el("span.mark.b", {}, "B"), other.report ? el("a", { href: `${other.report}/index.html` }, other.name) : other.name))),
        el("tbody", {}, rows.map(([name, a, b]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, a), el("td", {}, b)))))));
}

function matchList(facts, other, index, way, state, change) {
  const sort = state.get("sort") || "-score";
  const [name, down] = [sort.replace(/^-/, ""), sort.startsWith("-")];
  const column = other.ways.indexOf(way);
  let latents = [];
  const box = el("div.rows.matches", { role: "table", tabindex: 0, "aria-label": "Matches" });
  const head = (id, text, sortable) => el("span", { role: "columnheader", class: `c-${id}`, "aria-sort": name === id ? (down ? "descending" : "ascending") : null },
    sortable ? el("button", { type: "button", on: { click: () => change({ sort: (name === id ? !down : id !== "latent") ? `-${id}` : id }) } },
      text, el("span.arrow", { "aria-hidden": "true" }, name === id ? (down ? "↓" : "↑") : "")) : text);
  box.append(el("div", { role: "rowgroup", class: "sticky" }, el("div.head", { role: "row", "aria-rowindex": 1 },
    head("latent", "A", true), head("words", facts.kind === "image" ? "top images" : "top tokens"), head("frequency", "frequency", true),
    head("score", WAYS[way][0], true), head("other", "B"), head("words", ""), head("otherfrequency", "frequency"))));
  const node = el("section", { "aria-labelledby": "matches" },
    el("div.heading", {}, el("h2", { id: "matches" }, "Each latent of A and its match in B"),
      chooser("Match by", other.ways.map((key) => [key, WAYS[key][0]]), (key) => change({ by: key }), way),
      el("label.choose.narrow", {}, el("span", {}, "Sort by"), el("select", { id: "sort", on: { change: (event) => change({ sort: event.target.value }) } },
        [["-score", "most similar"], ["score", "least similar"], ["latent", "number"], ["-frequency", "frequency"]].map(([key, text]) => el("option", { value: key, selected: key === sort }, text))))),
    box);

  function start() {
    const rowHeight = () => parseFloat(getComputedStyle(box).getPropertyValue("--row"));
    const table = virtualRows(box, rowHeight, (at) => matchRow(facts, other, index, column, latents[at]));
    (async () => {
      const fires = await loadFiring(facts);
      const all = Array.from({ length: facts.latents }, (_, latent) => latent).filter(fires);
      const by = name === "score" ? await loadColumn(`compare/${index}/columns/${column}`)
        : name === "frequency" ? await columnOf(facts, "frequency") : null;
      latents = sorted(all, by, down);
      table.show(latents.length);
    })().catch(fail);
    return table;
  }
  return { node, start };
}

function matchRow(facts, other, index, column, latent) {
  const node = el("div.row");
  const chunk = Math.floor(latent / facts.chunk.rows);
  const link = el("a", { href: latentAddress(latent), tabindex: -1 }, latent);
  node.append(el("span.c-latent", { role: "cell" }, link));
  Promise.all([load(`rows/${chunk}`), load(`compare/${index}/rows/${chunk}`)]).then(([ours, theirs]) => {
    const [words, tag, images, values] = ours[latent % facts.chunk.rows];
    const match = theirs.rows[latent % facts.chunk.rows][column];
    const [theirWords, theirTag, theirImages, theirFrequency] = match ? theirs.named[theirs.numbers.indexOf(match[0])] : ["", "", [], null];
    const address = match && other.report ? `${other.report}/${latentAddress(match[0])}` : null;
    const named = (words, tag, images) => [miniatures(facts, images), tag ? el("span.tag", {}, tag) : null, el("span.words", { dir: "auto" }, words)];
    node.append(
      el("span.c-words", { role: "cell", title: words }, named(words, tag, images)),
      el("span.number.c-frequency", { role: "cell" }, percent(values[0])),
      el("span.c-score", { role: "cell" }, match ? [bar(match[1]), el("span.figure", {}, fixed(match[1]))] : el("span.muted", {}, "no match")),
      el("span.c-other", { role: "cell" }, match ? (address ? el("a", { href: address, tabindex: -1 }, match[0]) : match[0]) : ""),
      el("span.c-words", { role: "cell", title: theirWords }, named(theirWords, theirTag, theirImages)),
      el("span.number.c-otherfrequency", { role: "cell" }, match ? percent(theirFrequency) : ""));
  }).catch(fail);
  return node;
}
