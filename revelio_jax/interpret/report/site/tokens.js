// Prompts with each token shaded by the value of the latent on it.
"use strict";

const CONTEXT = 10; // tokens on either side of the peak

// The tokens of a sample: {text, special, position, share}. share is the value as a share of the latent's maximum, null
// if it was not recorded. Padding is shown up to the last position on which the latent fires.
function tokensOf(facts, page, sample, profile) {
  if (typeof sample.prompt === "string") return null;
  const [pieces, special] = sample.prompt;
  const scale = page.max ? sample.strength / page.max : 0;
  const cells = facts.cells[1];
  const wide = Math.ceil(facts.positions / cells); // positions a cell
  const share = (position) => {
    if (position === sample.position) return scale;
    if (!profile) return null;
    const cell = Math.floor(position / wide);
    return cell < cells ? (scale * profile[cell]) / 255 : null;
  };
  const tokens = pieces.map((text, position) => ({ text, special: special.includes(position), position, share: share(position) }));
  let fired = sample.position;
  if (profile) for (let cell = 0; cell < cells; cell++) if (profile[cell]) fired = Math.max(fired, cell * wide);
  for (let position = pieces.length; position <= fired; position++) {
    if (profile || position === sample.position) tokens.push({ text: "", padding: true, position, share: share(position) });
  }
  return tokens;
}

// One token; its outer spaces are not shaded.
function tokenNode(page, sample, { text, special, padding, position, share }) {
  const peak = position === sample.position;
  const [, before, inner, after] = text.match(/^(\s*)([\s\S]*?)(\s*)$/);
  const shown = special ? inner.replace(/^<\|?\/?|\|?>$|^\[|\]$/g, "").replace("startoftext", "start").replace("endoftext", "end").replace(/^s$/, "end") : visible(inner);
  const where = `${padding ? "padding, " : ""}position ${position}`;
  const says = share === null ? where : share > 0 ? `${value(share * page.max)}${peak ? " (peak)" : ""}, ${where}` : `does not fire, ${where}`;
  const node = el(`span.token${special ? ".special" : ""}${padding ? ".padding" : ""}${peak ? ".peak" : ""}${share === null ? ".unknown" : ""}`, {
    tabindex: peak ? 0 : -1, "data-says": says, "aria-label": peak ? `${shown || "space"}, ${says}` : null,
    css: share ? { "--share": Math.max(0.04, share).toFixed(3) } : {},
  }, padding ? "" : shown || "␣");
  if (padding) return ["\u2060", node, " "];
  return [before && " ", special ? [" ", node, " "] : node, after && " "];
}

// A whole prompt.
function promptNode(facts, page, sample, profile) {
  const tokens = tokensOf(facts, page, sample, profile);
  if (!tokens) return el("p.prompt", { dir: "auto" }, sample.prompt || `sample ${sample.number}`);
  return el("p.prompt", { dir: "auto" },
    tokens.map((token) => tokenNode(page, sample, token)),
    sample.prompt[2] ? el("span.unread", { title: "Beyond the token limit of the text encoder" }, " ", sample.prompt[2]) : null);
}

// The peak in the middle with the tokens before and after it.
function contextNode(facts, page, sample, profile) {
  const tokens = tokensOf(facts, page, sample, profile);
  if (!tokens) return promptNode(facts, page, sample, profile);
  const at = tokens.findIndex(({ position }) => position === sample.position);
  const nodes = (from, to) => tokens.slice(Math.max(0, from), to).map((token) => tokenNode(page, sample, token));
  return el("div.context", {},
    el("span.before", {}, el("bdi", {}, nodes(at - CONTEXT, at))),
    el("span.at", {}, el("bdi", {}, nodes(at, at + 1))),
    el("span.after", {}, el("bdi", {}, nodes(at + 1, at + 1 + CONTEXT))));
}

// A list of samples, each with its strength.
function promptList(facts, page, samples, profiles, inContext) {
  return el(`ol.prompts${inContext ? ".contexts" : ""}`, {}, samples.map((sample, i) =>
    el("li", {},
      el("span.strength", { title: strengthSays(sample) }, value(sample.strength), bar(page.max ? sample.strength / page.max : 0)),
      (inContext ? contextNode : promptNode)(facts, page, sample, profiles[i]),
      inContext ? null : caption(facts, sample))));
}

function strengthSays({ strength, quantile, number, timestep }) {
  const where = timestep >= 0 ? `, timestep ${timestep}` : "";
  return `${value(strength)} on sample ${number}${where}; at least as large as on ${percent(quantile)} of the rows on which it fires`;
}

// Shows values of tokens on hover, on touch, and with the arrow keys from the focused peak.
function listenToTokens(box) {
  const showValue = (event) => {
    const token = event.target.closest?.("[data-says]");
    if (token) showTip(token, token.dataset.says);
    else hideTip();
  };
  box.addEventListener("pointerover", showValue);
  box.addEventListener("pointerleave", hideTip);
  box.addEventListener("click", showValue);
  box.addEventListener("focusin", showValue);
  box.addEventListener("focusout", hideTip);
  box.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const token = event.target.closest(".token");
    if (!step || !token) return;
    const tokens = [...token.closest("li").querySelectorAll(".token")];
    event.preventDefault();
    tokens[tokens.indexOf(token) + step]?.focus();
  });
}
