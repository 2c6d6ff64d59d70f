// The samples of a latent with their prompts and labels from the store.
"use strict";

// Rows [sample, position, timestep, value, quantile] as objects with their prompt and labels.
async function readSamples(facts, rows) {
  const span = facts.chunk.samples;
  return Promise.all(rows.map(async ([number, position, timestep, strength, quantile]) => {
    const [prompt, labels, hasImage] = (await load(`samples/${Math.floor(number / span)}`))[number];
    return { number, position, timestep, strength, quantile, prompt, labels, hasImage };
  }));
}

// The map of each top sample: bytes [cells], 255 at its peak; null if samples have a single position.
async function readProfiles(facts, page) {
  if (!page.profile) return page.top.map(() => null);
  const bytes = new Uint8Array(await unpack(page.profile));
  const cells = facts.cells[0] * facts.cells[1];
  return page.top.map((_, i) => bytes.subarray(i * cells, (i + 1) * cells));
}

function caption(facts, sample) {
  return el("span.labels", {}, facts.labels.map((label, i) => (sample.labels[i] === "" ? null : chip(label, sample.labels[i]))));
}

// The tooltip near the hovered or focused token; one for the page.
const tip = el("div.tip", { role: "tooltip", id: "tip", hidden: true });

function showTip(target, text) {
  if (!tip.isConnected) document.body.append(tip);
  tip.textContent = text;
  tip.hidden = false;
  const [at, own] = [target.getBoundingClientRect(), tip.getBoundingClientRect()];
  const left = Math.max(8, Math.min(at.left + at.width / 2 - own.width / 2, document.documentElement.clientWidth - own.width - 8));
  const above = at.top - own.height - 6;
  tip.style.left = `${left + scrollX}px`;
  tip.style.top = `${(above > 0 ? above : at.bottom + 6) + scrollY}px`;
}

function hideTip() {
  tip.hidden = true;
}
