// The first page: totals over all latents, and the settings of the run.
"use strict";

const MEASURES = {
  // title, description, whether larger is purer, smallest difference that gets the full color range
  purity: ["Purity", "share of the most frequent class among the top samples of a latent; 1 means one class", true, () => 0.2],
  entropy: ["Entropy", "entropy of the classes of the top samples in bits; 0 means one class", false, () => 0.5],
  sigma: ["Sigma", "standard deviation of the class numbers of the top samples, as in Revelio; it depends on the order of the classes", false, (high) => high / 4],
};

(async () => {
  const facts = await startPage("index");
  if (!facts) return;
  document.title = `Latents of ${facts.name}: overview`;
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
  return facts.kind === "image" ? "image" : "prompt";
}

function lead(facts, { numbers }) {
  const kinds = { neurons: "neurons (coordinates of the activations)", random: "latents of a random dictionary" };
  const kind = kinds[facts.sae.architecture] ?? "latents of a sparse autoencoder";
  return el("div.lead", {},
    el("h1", {}, facts.name),
    el("p", {}, `${count(numbers.latents)} ${kind} on `, el("code", {}, facts.site), ` of ${facts.model}, `,
      `measured on ${count(facts.rows)} rows of ${plural(facts.samples, things(facts))}. `,
      el("a", { href: "latents.html" }, "Browse the latents")));
}

function tiles(facts, { numbers }) {
  const dead = numbers.latents - numbers.firing;
  const tile = (name, figure, ...says) => el("div.tile", {}, el("dt", {}, name), el("dd", {}, el("strong", {}, figure), el("span", {}, ...says)));
  return el("dl.tiles", { "aria-label": "Headline numbers" },
    tile("Firing latents", count(numbers.firing), `of ${count(numbers.latents)} fire on at least one row`),
    tile("Dead latents", count(dead), dead
      ? [`never fire (${percent(dead / numbers.latents)}). `, el("a", { href: "latents.html#dead=only" }, "Show them")]
      : "every latent fires on at least one row"),
    tile("L0", value(numbers.l0), "latents fire per row on average", facts.k ? `; k is ${facts.k}` : ""),
    tile("Median frequency", percent(numbers.frequency), "of the rows; half of the firing latents fire less often"),
    ...numbers.purity.map(([label, mean, low, high, known, chance]) => tile(`Purity: ${label}`, fixed(mean),
      known ? `mean of ${plural(known, "latent")} (${fixed(low)}–${fixed(high)})${chance === null ? "" : `; chance is ${fixed(chance)}`}` : "no latent fires on enough samples")),
    facts.tagged ? tile("Tagged", count(numbers.tagged), "latents with a tag from a vision-language model") : null);
}

function density({ density }) {
  return histogram({
    edges: density.edges, series: [{ counts: density.counts }], tick: powerTick, unit: "latents",
    caption: [el("h2", {}, "How often latents fire"), el("p", {}, "Latents by the share of rows on which they fire; logarithmic scale, without dead latents. A bar opens its latents.")],
    address: (low, high, i, first, last) => `latents.html#${writeState({ ...readState(""), sort: "frequency", ranges: new Map([["frequency", [i === first ? -Infinity : 10 ** low, i === last ? Infinity : 10 ** high]]]) })}`,
  });
}

function scatter(facts, { scatter }) {
  const shown = el("div");
  const heading = el("h2", {}, "Purity and frequency");
  if (!scatter.length) return el("figure.chart", {}, el("figcaption", {}, heading), empty("The samples have no labels, so purity was not measured."));
  const show = (label) => {
    const { x, y, bins } = scatter.find((one) => one.label === label);
    const range = (i, j) => new Map([
      ["frequency", [i === 0 ? -Infinity : 10 ** x[i], i === x.length - 2 ? Infinity : 10 ** x[i + 1]]],
      [`${label}.purity`, [y[j] - 1e-4, j === y.length - 2 ? Infinity : y[j + 1] - 1e-4]],
    ]);
    shown.replaceChildren(densityMap({
      x, y, bins, xTick: powerTick, yTick: fixed, labels: "Horizontal: frequency. Vertical: purity.",
      says: (i, j, n) => `${plural(n, "latent")}: fire on ${percent(10 ** x[i])} to ${percent(10 ** x[i + 1])} of the rows, purity ${fixed(y[j])} to ${fixed(y[j + 1])}`,
      address: (i, j) => `latents.html#${writeState({ ...readState(""), sort: `${label}.purity`, down: true, ranges: range(i, j) })}`,
      caption: el("p", {}, `Horizontal: frequency. Vertical: purity of ${label}. A cell opens its latents.`),
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
    says.textContent = `Mean over latents of the ${measure}: ${MEASURES[measure][1]}. Latents that fire on too few samples are left out. Stronger color means purer.`;
    shown.replaceChildren(...purity.map((one) => heatTable(facts, one, measure)));
  };
  show("purity");
  section.append(el("div.heading", {}, heading, chooser("Measure", Object.entries(MEASURES).map(([key, [name]]) => [key, name]), show)), says, shown);
  return section;
}

// One row per run, one column per stratum. The purest cell has the strongest color for every measure.
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
        cells.map((one, i) => cell(one[at], `mean of ${plural(one[3], "latent")}`, i === strata.length)))),
        el("tr.chance", {}, el("th", { scope: "row" }, "chance"),
          chance.map((one, i) => cell(one[at], "value for the same number of random samples", i === strata.length))))));
}

function lists(facts, { listed }) {
  const say = { purity: (label) => `Purest by ${label}`, frequency: () => "Most frequent" };
  const sort = { purity: (label) => `-${label}.purity`, frequency: () => "-frequency" };
  return el("section", { "aria-labelledby": "listed" },
    el("h2", { id: "listed" }, "Latents to start with"),
    el("div.lists", {}, listed.map(({ by, label, latents }) => {
      const table = new URLSearchParams({ sort: sort[by](label) }).toString();
      return el("section.panel", {},
        el("div.heading", {}, el("h3", {}, say[by](label)), el("a", { href: tableAddress(table), "aria-label": `All latents, ${say[by](label).toLowerCase()} first` }, "all")),
        latents.length ? el("ol.named", {}, latents.map(([latent, named, figure, majority]) =>
          el("li", {}, el("a", { href: latentAddress(latent, table) },
            el("span.number", {}, latent), miniatures(facts, named[2]),
            el("span.title", { dir: "auto", title: title(named) }, by === "purity" ? className(majority) : title(named)),
            el("span.figure", {}, by === "purity" ? fixed(figure) : percent(figure))))))
          : empty("No latent fires on enough samples."));
    })));
}

function run(facts) {
  const fact = (name, ...says) => [el("dt", {}, name), el("dd", {}, ...says)];
  return el("section.panel", { "aria-labelledby": "run" },
    el("h2", { id: "run" }, "Settings"),
    el("dl.facts", {},
      fact("Model", el("code", {}, facts.model), ` (${facts.family})`),
      fact("Hook point", el("code", {}, facts.site), `, width ${count(facts.d)}`),
      facts.sae.folder
        ? fact("Autoencoder", el("code", {}, facts.sae.folder), `, ${count(facts.latents)} latents`, facts.k ? `, k ${facts.k}` : "", ", sha256 ", el("code", { title: facts.sae.sha256 }, facts.sae.sha256.slice(0, 12)))
        : fact("Autoencoder", "none: each coordinate of the activations is a latent"),
      fact("Activations", el("code", {}, facts.store.location), `, mode ${facts.mode}, fingerprint `, el("code", { title: facts.store.fingerprint }, facts.store.fingerprint.slice(0, 12))),
      fact("Data", `${count(facts.rows)} rows of ${plural(facts.samples, things(facts))}`, facts.grid ? `, heatmaps of ${facts.grid.join(" × ")}` : facts.positions ? `, at most ${plural(facts.positions, "position")} each` : ""),
      facts.timesteps?.length ? fact("Timesteps", facts.timesteps.join(", ")) : null,
      fact("Labels", facts.labels.length ? facts.labels.join(", ") : "none"),
      facts.compare.length ? fact("Compared with", facts.compare.map(({ name, site }, i) => [i ? ", " : "", el("a", { href: `compare.html#with=${i}` }, `${name} (${site})`)])) : null));
}
