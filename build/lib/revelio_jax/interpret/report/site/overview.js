// The first page: what was run, and all latents together.
"use strict";

const MEASURES = {
  // its name, what it says, whether more is purer, and by how much it must differ for all of the colour
  purity: ["Purity", "share of the most frequent class among a latent's strongest samples: 1 is one class", true, () => 0.2],
  entropy: ["Entropy", "of those samples' classes, in bits: 0 is one class", false, () => 0.5],
  sigma: ["Sigma", "standard deviation of those samples' class numbers, as Revelio has it: it depends on the order of classes", false, (high) => high / 4],
};

(async () => {
  const facts = await startPage("index");
  if (!facts) return;
  document.title = `${facts.name}: what its latents mean`;
  const overview = await load("overview").catch(fail);
  if (!overview) return;
  document.querySelector("main").append(
    lead(facts, overview),
    tiles(facts, overview),
    el("div.halves", {}, el("section.panel", {}, density(overview)), el("section.panel", {}, scatter(facts, overview))),
    purity(facts, overview),
    lists(facts, overview),
    run(facts),
  );
})();

function things(facts) {
  return facts.kind === "image" ? "picture" : "prompt";
}

function lead(facts, { numbers }) {
  const neurons = facts.sae.folder ? "latents of a sparse autoencoder" : "neurons, each coordinate by itself,";
  return el("div.lead", {},
    el("h1", {}, facts.name),
    el("p", {}, `${count(numbers.latents)} ${neurons} on `, el("code", {}, facts.site), ` of ${facts.model}, `,
      `read over ${count(facts.rows)} rows of ${plural(facts.samples, things(facts))}. `,
      el("a", { href: "latents.html" }, "Browse the latents")));
}

function tiles(facts, { numbers }) {
  const dead = numbers.latents - numbers.firing;
  const tile = (name, figure, ...says) => el("div.tile", {}, el("dt", {}, name), el("dd", {}, el("strong", {}, figure), el("span", {}, ...says)));
  return el("dl.tiles", { "aria-label": "Headline numbers" },
    tile("Latents that fire", count(numbers.firing), `of ${count(numbers.latents)}, on at least one row`),
    tile("Dead latents", count(dead), dead
      ? [`fire on none (${percent(dead / numbers.latents)}). `, el("a", { href: "latents.html#dead=only" }, "Which")]
      : "every latent fires on some row"),
    tile("L0", value(numbers.l0), "latents fire on a row, on average", facts.k ? `; k is ${facts.k}` : ""),
    tile("Median frequency", percent(numbers.frequency), "of the rows: half of those that fire do so less often"),
    ...numbers.purity.map(([label, mean, low, high, known, chance]) => tile(`Purity: ${label}`, fixed(mean),
      known ? `mean of ${plural(known, "latent")} (${fixed(low)}–${fixed(high)})${chance === null ? "" : `; by chance ${fixed(chance)}`}` : "no latent fires on enough samples")),
    facts.tagged ? tile("Tagged", count(numbers.tagged), "latents that a vision-language model named") : null);
}

function density({ density }) {
  return histogram({
    edges: density.edges, series: [{ counts: density.counts }], tick: powerTick, unit: "latents",
    caption: [el("h2", {}, "How often latents fire"), el("p", {}, "Latents by the share of rows on which they fire, on a logarithmic scale. Dead ones are left out.")],
    address: (low, high, i, first, last) => `latents.html#${writeState({ ...readState(""), sort: "frequency", ranges: new Map([["frequency", [i === first ? -Infinity : 10 ** low, i === last ? Infinity : 10 ** high]]]) })}`,
  });
}

function scatter(facts, { scatter }) {
  const shown = el("div");
  const heading = el("h2", {}, "Purity and frequency");
  if (!scatter.length) return el("figure.chart", {}, el("figcaption", {}, heading), empty("The samples have no labels, so there is no purity."));
  const show = (label) => {
    const { x, y, bins } = scatter.find((one) => one.label === label);
    const range = (i, j) => new Map([
      ["frequency", [i === 0 ? -Infinity : 10 ** x[i], i === x.length - 2 ? Infinity : 10 ** x[i + 1]]],
      [`${label}.purity`, [y[j] - 1e-4, j === y.length - 2 ? Infinity : y[j + 1] - 1e-4]],
    ]);
    shown.replaceChildren(densityMap({
      x, y, bins, xTick: powerTick, yTick: fixed, labels: "From left to right their frequency, from below their purity.",
      says: (i, j, n) => `${plural(n, "latent")}: fire on ${percent(10 ** x[i])} to ${percent(10 ** x[i + 1])} of the rows, purity ${fixed(y[j])} to ${fixed(y[j + 1])}`,
      address: (i, j) => `latents.html#${writeState({ ...readState(""), sort: `${label}.purity`, down: true, ranges: range(i, j) })}`,
      caption: el("p", {}, `From left to right how often a latent fires, from below how pure it is of ${label}. A cell opens its latents.`),
    }));
  };
  show(scatter[0].label);
  return el("div", {}, el("div.heading", {}, heading, chooser("Label", scatter.map(({ label }) => [label, label]), show)), shown);
}

function purity(facts, { purity }) {
  const section = el("section.panel", { "aria-labelledby": "purity" });
  const heading = el("h2", { id: "purity" }, "Purity by hook point", facts.stratum.column ? ` and ${facts.stratum.column}` : "");
  if (!purity.length) {
    section.append(heading, empty("The samples have no labels, so purity was not measured."));
    return section;
  }
  const says = el("p.note");
  const shown = el("div.tables");
  const show = (measure) => {
    says.textContent = `Mean over latents of the ${measure}: ${MEASURES[measure][1]}. Those that fire on too few samples are left out. More colour is purer, from what chance would give.`;
    shown.replaceChildren(...purity.map((one) => heatTable(facts, one, measure)));
  };
  show("purity");
  section.append(el("div.heading", {}, heading, chooser("Measure", Object.entries(MEASURES).map(([key, [name]]) => [key, name]), show)), says, shown);
  return section;
}

// A row a run, a column a stratum. The purest cell has the most colour, whichever way the measure runs.
function heatTable(facts, { label, strata, runs, classes, chance }, measure) {
  const at = Object.keys(MEASURES).indexOf(measure);
  const [, , rises, least] = MEASURES[measure];
  const all = [...runs.flatMap(({ cells }) => cells), ...chance].map((cell) => cell[at]).filter((x) => x !== null);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const depth = (x) => (rises ? x - low : high - x) / Math.max(high - low, least(high), 1e-9);
  const cell = (figure, says, last) => figure === null ? el(last ? "td.none.all" : "td.none", { title: "no latent fires on enough samples" }, NONE)
    : el(last ? "td.all" : "td", { title: says, css: { "--heat": depth(figure) } }, fixed(figure));
  const stratum = (name) => (facts.stratum.column === "timestep" ? `t = ${name}` : className(name));
  return el("div.scroll", { tabindex: 0, role: "region", "aria-label": `${measure} of ${label}` },
    el("table.heat", {},
      el("caption", {}, label, el("span", {}, classes ? ` ${plural(classes, "class", "classes")}` : "")),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Hook point"),
        strata.map((name) => el("th", { scope: "col" }, stratum(name))), el("th.all", { scope: "col" }, "all"))),
      el("tbody", {}, runs.map(({ name, site, cells }) => el("tr", {},
        el("th", { scope: "row", title: name }, el("code", {}, site), runs.length > 1 ? el("span", {}, ` ${name}`) : null),
        cells.map((one, i) => cell(one[at], `over ${plural(one[3], "latent")}`, i === strata.length)))),
        el("tr.chance", {}, el("th", { scope: "row" }, "by chance"),
          chance.map((one, i) => cell(one[at], "what as many samples drawn at random would have", i === strata.length))))));
}

function lists(facts, { listed }) {
  const say = { purity: (label) => `Purest of ${label}`, frequency: () => "Most frequent" };
  const sort = { purity: (label) => `-${label}.purity`, frequency: () => "-frequency" };
  return el("section", { "aria-labelledby": "listed" },
    el("h2", { id: "listed" }, "Latents to begin with"),
    el("div.lists", {}, listed.map(({ by, label, latents }) => {
      const table = new URLSearchParams({ sort: sort[by](label) }).toString();
      return el("section.panel", {},
        el("div.heading", {}, el("h3", {}, say[by](label)), el("a", { href: tableAddress(table), "aria-label": `All, ${say[by](label)} first` }, "all")),
        latents.length ? el("ol.named", {}, latents.map(([latent, named, figure, majority]) =>
          el("li", {}, el("a", { href: latentAddress(latent, table) },
            el("span.number", {}, latent), miniatures(facts, named[2]),
            el("span.title", { dir: "auto", title: title(named) }, by === "purity" ? className(majority) : title(named)),
            el("span.figure", {}, by === "purity" ? fixed(figure) : percent(figure))))))
          : empty("None fires on enough samples."));
    })));
}

function run(facts) {
  const fact = (name, ...says) => [el("dt", {}, name), el("dd", {}, ...says)];
  return el("section.panel", { "aria-labelledby": "run" },
    el("h2", { id: "run" }, "What was run"),
    el("dl.facts", {},
      fact("Model", el("code", {}, facts.model), ` (${facts.family})`),
      fact("Hook point", el("code", {}, facts.site), `, width ${count(facts.d)}`),
      facts.sae.folder
        ? fact("Autoencoder", el("code", {}, facts.sae.folder), `, ${count(facts.latents)} latents`, facts.k ? `, k ${facts.k}` : "", ", sha256 ", el("code", { title: facts.sae.sha256 }, facts.sae.sha256.slice(0, 12)))
        : fact("Autoencoder", "none: each coordinate of the activations is taken as a latent"),
      fact("Activations", el("code", {}, facts.store.location), `, mode ${facts.mode}, fingerprint `, el("code", { title: facts.store.fingerprint }, facts.store.fingerprint.slice(0, 12))),
      fact("Read", `${count(facts.rows)} rows of ${plural(facts.samples, things(facts))}`, facts.grid ? `, maps of ${facts.grid.join(" x ")}` : facts.positions ? `, at most ${plural(facts.positions, "position")} each` : ""),
      facts.timesteps?.length ? fact("Timesteps", facts.timesteps.join(", ")) : null,
      fact("Labels", facts.labels.length ? facts.labels.join(", ") : "none"),
      facts.compare.length ? fact("Beside it", facts.compare.map(({ name, site }, i) => [i ? ", " : "", el("a", { href: `compare.html#with=${i}` }, `${name} (${site})`)])) : null));
}
