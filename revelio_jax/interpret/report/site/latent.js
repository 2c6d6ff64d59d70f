// The page of one latent.
"use strict";

let pageFacts;
// Promise of the links to the next and previous latent of the table. A key pressed while a page is drawn waits for the
// links of that page.
let steps;

(async () => {
  const [, table] = readAddress();
  pageFacts = await startPage("latent", table);
  if (!pageFacts) return;
  onKey(["j", "ArrowRight"], "next latent", async () => (await steps).next?.click());
  onKey(["k", "ArrowLeft"], "previous latent", async () => (await steps).previous?.click());
  onKey(["b", "Backspace"], "back to the table", () => document.querySelector(".back")?.click());
  if (pageFacts.kind === "image") {
    onKey(["h"], "show or hide heatmaps", () => {
      const slider = document.querySelector("#opacity");
      if (!slider) return;
      slider.value = Number(slider.value) ? 0 : 0.8;
      slider.dispatchEvent(new Event("input"));
    });
  } else onKey(["c"], "switch between whole prompts and contexts", () => document.querySelector("input[name=view]:not(:checked)")?.click());
  listenToTokens(document.querySelector("main"));
  const turnPage = () => { steps = draw(); };
  addEventListener("hashchange", turnPage);
  turnPage();
})();

// The number of the latent, and the state of the table from which it was opened.
function readAddress() {
  const [number, ...table] = location.hash.replace(/^#/, "").split("&");
  return [Number(number || 0), table.join("&")];
}

let turn = 0;

// Draws the latent in the address; returns the links to the previous and next one.
async function draw() {
  const mine = ++turn;
  const facts = pageFacts;
  const [latent, table] = readAddress();
  const main = document.querySelector("main");
  hideTip();
  if (!Number.isInteger(latent) || latent < 0 || latent >= facts.latents) {
    main.replaceChildren(empty(`Unknown latent ${location.hash.slice(1)}. This report has latents 0 to ${count(facts.latents - 1)}.`));
    return {};
  }
  document.title = `Latent ${latent} of ${facts.name}`;
  let chunk;
  try {
    chunk = await load(`latents/${Math.floor(latent / facts.chunk.pages)}`);
  } catch (error) {
    fail(error);
    return {};
  }
  const page = chunk.pages[latent - chunk.start];
  const few = facts.kind === "image" ? 10 : 5;
  const [profiles, top, weaker, strata] = await Promise.all([
    readProfiles(facts, page),
    readSamples(facts, page.top),
    readSamples(facts, page.weaker),
    Promise.all(page.strata.map(({ kept }) => readSamples(facts, kept.slice(0, few)))),
  ]);
  if (mine !== turn) return {};
  const named = new Map(chunk.numbers.map((number, i) => [number, chunk.named[i]]));
  main.replaceChildren(
    heading(facts, latent, page, table),
    ...(page.rows
      ? [el("div.columns", {},
          el("div.wide", {},
            topSection(facts, page, top, profiles),
            weakerSection(facts, page, weaker),
            strataSection(facts, page, strata)),
          el("aside", { "aria-label": "Values and similar latents" },
            valuesSection(facts, page),
            nearSection(facts, "Fires with", "Jaccard index: rows on which both fire, divided by rows on which at least one fires.", page.coactive, named, table, "No other latent fires on the same rows."),
            nearSection(facts, "Similar decoder directions", "Cosine of the decoder directions.", page.nearest, named, table, "Neurons have no decoder.")))]
      : [empty(`This latent is dead: it never fires on the ${count(facts.rows)} rows.`)]));
  scrollTo(0, 0);
  return walk(facts, latent, table, mine);
}

function heading(facts, latent, page, table) {
  const [label, granularity, score, low, high, model] = page.tag ?? [];
  const scored = score === null ? "" : `, score ${fixed(score)} (${fixed(low)}–${fixed(high)})`;
  const stat = (name, figure, ...says) => el("div.tile", {}, el("dt", {}, name), el("dd", {}, el("strong", {}, figure), el("span", {}, ...says)));
  const state = readState(table);
  return el("div.title", {},
    el("div.crumbs", {},
      el("a.back", { href: tableAddress(table, latent) }, "← ", state.q ? `Latents with “${state.q}”` : "All latents"),
      el("span.walk", {}, el("a.step.previous", { "aria-label": "Previous latent" }, "‹"), el("span.place"), el("a.step.next", { "aria-label": "Next latent" }, "›"))),
    el("h1", {}, "Latent ", latent,
      label ? el("span.tag", { dir: "auto" }, label) : null,
      granularity ? el("span.chip", {}, el("span.of", {}, "granularity"), " ", granularity) : null),
    label ? el("p.note", {}, `Tag by ${model}${scored}.`) : null,
    page.words ? el("p.words", { dir: "auto" }, el("span.of", {}, "Top tokens "), page.words) : null,
    page.rows ? el("dl.tiles", { "aria-label": "Statistics" },
      stat("Frequency", percent(page.frequency), `fires on ${count(page.rows)} rows`),
      stat(facts.kind === "image" ? "Images" : "Prompts", count(page.samples), `of ${count(facts.samples)} (${percent(page.samples / facts.samples)})`),
      stat("Mean value", value(page.mean), `where it fires; maximum ${value(page.max)}`),
      facts.positions > 1 ? stat("Spread", percent(page.spread), "of a sample's positions, if it fires on the sample") : null,
      ...facts.labels.map((name, i) => {
        const [purity, entropy, sigma, majority] = page.labels[i];
        return purity === null ? stat(`Purity: ${name}`, NONE, "fires on too few samples")
          : stat(`Purity: ${name}`, fixed(purity), el("span.class", { dir: "auto", title: className(majority) }, className(majority)), el("br"), `entropy ${fixed(entropy)} bits, sigma ${fixed(sigma)}`);
      })) : null);
}

// Sets the links to the previous and next latent of the table from which this one was opened.
async function walk(facts, latent, table, mine) {
  const order = await ordered(facts, readState(table), () => mine !== turn);
  if (mine !== turn) return {};
  const at = order.indexOf(latent);
  const [previous, next] = at >= 0 ? [order[at - 1], order[at + 1]]
    : [order.findLast((other) => other < latent), order.find((other) => other > latent)];
  const set = (selector, to, says) => {
    const link = document.querySelector(selector);
    if (to === undefined) link.removeAttribute("href");
    else link.href = latentAddress(to, table);
    link.title = to === undefined ? "" : `${says}: latent ${to}`;
    return to === undefined ? null : link;
  };
  document.querySelector(".walk .place").textContent = at >= 0 ? `${count(at + 1)} of ${count(order.length)}` : "";
  if (next !== undefined) load(`latents/${Math.floor(next / facts.chunk.pages)}`).catch(() => {});
  return { previous: set(".step.previous", previous, "Previous (k)"), next: set(".step.next", next, "Next (j)") };
}

function section(id, name, says, ...children) {
  return el("section.panel", { "aria-labelledby": id }, el("div.heading", {}, el("h2", { id }, name)), says ? el("p.note", {}, says) : null, ...children);
}

function topSection(facts, page, samples, profiles) {
  if (facts.kind === "image") {
    const list = imageList(facts, samples, profiles);
    const shownOpacity = page.profile ? opacity : 0;
    list.style.setProperty("--opacity", shownOpacity);
    const slider = el("label.slider", {}, el("span", {}, "Heatmap"), el("input", {
      type: "range", id: "opacity", min: 0, max: 1, step: 0.05, value: shownOpacity, title: "Show or hide: h",
      on: { input: (event) => { list.style.setProperty("--opacity", event.target.value); opacity = event.target.value; } },
    }));
    const made = section("top", "Top images",
      page.profile ? "Each heatmap is scaled to its own peak, which a box marks. The area around the peak is enlarged next to it." : "Heatmaps are not shown, because each image has a single row.", list);
    if (page.profile) made.querySelector(".heading").append(slider);
    return made;
  }
  const shown = el("div");
  const show = () => shown.replaceChildren(promptList(facts, page, samples, profiles, view === "contexts"));
  const choice = (key, name) => el("label", {}, el("input", { type: "radio", name: "view", value: key, checked: view === key, on: { change: () => { view = key; show(); } } }), name);
  show();
  const made = section("top", "Top prompts", null, legend(page), shown);
  made.querySelector(".heading").append(el("fieldset.choice", { "aria-label": "View" }, choice("prompts", "Whole prompts"), choice("contexts", "Contexts")));
  return made;
}

// These two are kept when another latent is opened.
let view = "prompts";
let opacity = 0.8;

function legend(page) {
  return el("p.legend", {}, "0 ", el("span.scale", { "aria-hidden": "true" }), ` ${value(page.max)} `, el("span.token.peak", { css: { "--share": 0.5 } }, "peak"),
    " Hover over or focus a token to see its value.");
}

function weakerSection(facts, page, samples) {
  if (!samples.length) return null;
  const says = "Samples from lower quantiles of its values.";
  return section("weaker", "Weaker samples", says, facts.kind === "image" ? imageStrip(facts, samples, true)
    : promptList(facts, page, samples, samples.map(() => null), false));
}

function strataSection(facts, page, samples) {
  if (!page.strata.length) return null;
  const column = facts.stratum.column;
  const name = (stratum) => (column === "timestep" ? `t = ${stratum}` : className(stratum));
  const silent = facts.stratum.values.filter((stratum) => !page.strata.some((one) => one.stratum === String(stratum)));
  const largest = Math.max(...page.strata.map(({ max }) => max));
  return section("strata", `By ${column}`, silent.length ? `Does not fire at ${silent.map((stratum) => name(String(stratum))).join(", ")}.` : null,
    el("div.strata", {}, page.strata.map((one, i) =>
      el("section", {},
        el("div.stratum", {},
          el("h3", { dir: "auto" }, name(one.stratum)),
          el("span.bars", { title: `maximum ${value(one.max)}` }, bar(one.max / largest)),
          el("span.note", {}, `${plural(one.samples, facts.kind === "image" ? "image" : "prompt")}, mean ${value(one.mean)}, maximum ${value(one.max)}`),
          el("span.labels", {}, facts.labels.map((label, j) => {
            const [purity, , , majority] = one.labels[j];
            return purity === null ? null : chip(label, majority, el("span.figure", {}, ` ${fixed(purity)}`));
          }))),
        withMore(facts, samples[i], one.kept, (shown) => (facts.kind === "image" ? imageStrip(facts, shown, false)
          : promptList(facts, page, shown, shown.map(() => null), false)))))));
}

// A list of the first samples, with a button that shows all.
function withMore(facts, samples, kept, list) {
  const box = el("div", {}, list(samples));
  const left = kept.length - samples.length;
  if (left > 0) {
    box.append(el("button.more", { type: "button", on: { click: async () => box.replaceChildren(list(await readSamples(facts, kept))) } }, `${count(left)} more`));
  }
  return box;
}

function valuesSection(facts, page) {
  const edges = facts.histogram_log2_edges;
  return el("section.panel", {}, histogram({
    edges, series: [{ counts: page.histogram }], unit: "rows",
    tick: (edge, exactly) => (exactly || Math.abs(edge - Math.round(edge)) < 0.02 ? short(2 ** edge) : null),
    caption: [el("h2", {}, "Values"), el("p.note", {}, "Rows by the value of the latent; logarithmic scale.")],
  }));
}

function nearSection(facts, name, says, near, named, table, none) {
  return el("section.panel", {},
    el("h2", {}, name), el("p.note", {}, says),
    near.length ? el("ol.named", {}, near.map(([other, score]) => {
      const [, , images] = named.get(other);
      return el("li", {}, el("a", { href: latentAddress(other, table) },
        el("span.number", {}, other), miniatures(facts, images),
        el("span.title", { dir: "auto" }, title(named.get(other))), el("span.figure", {}, fixed(score))));
    })) : empty(none));
}
