// The page of one latent.
"use strict";

let pageFacts;
// Promise of the next and previous in the table that it was opened from: who presses a key while a page is being
// drawn means the neighbours of that page.
let neighbours;

(async () => {
  const [, table] = readAddress();
  pageFacts = await startPage("latent", table);
  if (!pageFacts) return;
  onKey(["j", "ArrowRight"], "next latent of the table", async () => (await neighbours).next?.click());
  onKey(["k", "ArrowLeft"], "previous latent of the table", async () => (await neighbours).previous?.click());
  onKey(["b", "Backspace"], "back to the table", () => document.querySelector(".back")?.click());
  if (pageFacts.kind === "image") {
    onKey(["h"], "heatmaps on or off", () => {
      const slider = document.querySelector("#opacity");
      if (!slider) return;
      slider.value = Number(slider.value) ? 0 : 0.8;
      slider.dispatchEvent(new Event("input"));
    });
  } else onKey(["c"], "whole prompts or contexts", () => document.querySelector("input[name=view]:not(:checked)")?.click());
  listenToTokens(document.querySelector("main"));
  const turnPage = () => { neighbours = draw(); };
  addEventListener("hashchange", turnPage);
  turnPage();
})();

// Number of the latent, and the state of the table that it was opened from.
function readAddress() {
  const [number, ...table] = location.hash.replace(/^#/, "").split("&");
  return [Number(number || 0), table.join("&")];
}

let turn = 0;

// Draws the latent of the address; its neighbours.
async function draw() {
  const mine = ++turn;
  const facts = pageFacts;
  const [latent, table] = readAddress();
  const main = document.querySelector("main");
  hideTip();
  if (!Number.isInteger(latent) || latent < 0 || latent >= facts.latents) {
    main.replaceChildren(empty(`There is no latent ${location.hash.slice(1)}: they are numbered from 0 to ${count(facts.latents - 1)}.`));
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
          el("aside", { "aria-label": "Values and neighbours" },
            valuesSection(facts, page),
            nearSection(facts, "Fire together", "Jaccard index: rows on which both fire, of those on which either does", page.coactive, named, table, "No other latent fires on the same rows."),
            nearSection(facts, "Nearest by decoder", "cosine of their decoder directions", page.nearest, named, table, "There is no decoder to compare by.")))]
      : [empty(`This latent is dead: it fires on none of the ${count(facts.rows)} rows that were read.`)]));
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
    label ? el("p.note", {}, `Named by ${model}${scored}.`) : null,
    page.words ? el("p.words", { dir: "auto" }, el("span.of", {}, "Strongest on "), page.words) : null,
    page.rows ? el("dl.tiles", { "aria-label": "Statistics" },
      stat("Fires on", percent(page.frequency), `of the rows: ${count(page.rows)}`),
      stat(facts.kind === "image" ? "Pictures" : "Prompts", count(page.samples), `of ${count(facts.samples)} (${percent(page.samples / facts.samples)})`),
      stat("Mean value", value(page.mean), `where it fires; largest ${value(page.max)}`),
      facts.positions > 1 ? stat("Spread", percent(page.spread), "of a sample's positions, where it fires") : null,
      ...facts.labels.map((name, i) => {
        const [purity, entropy, sigma, majority] = page.labels[i];
        return purity === null ? stat(`Purity: ${name}`, NONE, "fires on too few samples")
          : stat(`Purity: ${name}`, fixed(purity), el("span.class", { dir: "auto", title: className(majority) }, className(majority)), el("br"), `entropy ${fixed(entropy)} bits, sigma ${fixed(sigma)}`);
      })) : null);
}

// Before and after it in the table that it was opened from, once that is known.
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
    const list = pictureList(facts, samples, profiles);
    const kept = page.profile ? readOpacity() : 0;
    list.style.setProperty("--opacity", kept);
    const slider = el("label.slider", {}, el("span", {}, "Heatmap"), el("input", {
      type: "range", id: "opacity", min: 0, max: 1, step: 0.05, value: kept, title: "h: on or off",
      on: { input: (event) => { list.style.setProperty("--opacity", event.target.value); opacity = event.target.value; } },
    }));
    const made = section("top", "Strongest pictures",
      page.profile ? "Each map is scaled to its own peak, which the box marks; beside it the part around the peak." : "Their activations have no map: a row is a whole picture.", list);
    if (page.profile) made.querySelector(".heading").append(slider);
    return made;
  }
  const shown = el("div");
  const show = () => shown.replaceChildren(promptList(facts, page, samples, profiles, view === "contexts"));
  const choice = (key, name) => el("label", {}, el("input", { type: "radio", name: "view", value: key, checked: view === key, on: { change: () => { view = key; show(); } } }), name);
  show();
  const made = section("top", "Strongest prompts", null, legend(page), shown);
  made.querySelector(".heading").append(el("fieldset.choice", { "aria-label": "View" }, choice("prompts", "Whole prompts"), choice("contexts", "Contexts")));
  return made;
}

let view = "prompts"; // kept from latent to latent
let opacity = 0.8;

function readOpacity() {
  return opacity;
}

function legend(page) {
  return el("p.legend", {}, "0 ", el("span.scale", { "aria-hidden": "true" }), ` ${value(page.max)} `, el("span.token.peak", { css: { "--share": 0.5 } }, "peak"),
    " Hover over a token, or focus it, for its value.");
}

function weakerSection(facts, page, samples) {
  if (!samples.length) return null;
  const says = "Drawn from lower quantiles of its values: what it fires on when it is not at its strongest.";
  return section("weaker", "Weaker", says, facts.kind === "image" ? pictureStrip(facts, samples, true)
    : promptList(facts, page, samples, samples.map(() => null), false));
}

function strataSection(facts, page, samples) {
  if (!page.strata.length) return null;
  const column = facts.stratum.column;
  const name = (stratum) => (column === "timestep" ? `t = ${stratum}` : className(stratum));
  const silent = facts.stratum.values.filter((stratum) => !page.strata.some((one) => one.stratum === String(stratum)));
  const largest = Math.max(...page.strata.map(({ max }) => max));
  return section("strata", `By ${column}`, silent.length ? `Silent at ${silent.map((stratum) => name(String(stratum))).join(", ")}.` : null,
    el("div.strata", {}, page.strata.map((one, i) =>
      el("section", {},
        el("div.stratum", {},
          el("h3", { dir: "auto" }, name(one.stratum)),
          el("span.bars", { title: `largest value ${value(one.max)}` }, bar(one.max / largest)),
          el("span.note", {}, `${plural(one.samples, facts.kind === "image" ? "picture" : "prompt")}, mean ${value(one.mean)}, largest ${value(one.max)}`),
          el("span.labels", {}, facts.labels.map((label, j) => {
            const [purity, , , majority] = one.labels[j];
            return purity === null ? null : chip(label, majority, el("span.figure", {}, ` ${fixed(purity)}`));
          }))),
        withMore(facts, samples[i], one.kept, (shown) => (facts.kind === "image" ? pictureStrip(facts, shown, false)
          : promptList(facts, page, shown, shown.map(() => null), false)))))));
}

// A list of the first samples, and of all where they are asked for.
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
    caption: [el("h2", {}, "Values"), el("p.note", {}, "Rows by its value there, on a logarithmic scale.")],
  }));
}

function nearSection(facts, name, says, near, named, table, none) {
  return el("section.panel", {},
    el("h2", {}, name), el("p.note", {}, says),
    near.length ? el("ol.named", {}, near.map(([other, score]) => {
      const [, , pictures] = named.get(other);
      return el("li", {}, el("a", { href: latentAddress(other, table) },
        el("span.number", {}, other), miniatures(facts, pictures),
        el("span.title", { dir: "auto" }, title(named.get(other))), el("span.figure", {}, fixed(score))));
    })) : empty(none));
}
