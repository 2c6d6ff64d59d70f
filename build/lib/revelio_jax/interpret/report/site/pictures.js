// Pictures with a map of where a latent fires laid over them, and the part around its peak.
"use strict";

// Inferno: it rises evenly in lightness, so that it reads without colour too.
const INFERNO = [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]];

function inferno(share) {
  const at = share * (INFERNO.length - 1);
  const [low, high] = [INFERNO[Math.floor(at)], INFERNO[Math.ceil(at)]];
  return low.map((from, i) => from + (high[i] - from) * (at - Math.floor(at)));
}

// A canvas with a pixel a cell; where the latent is silent the picture is seen.
function mapNode(facts, profile) {
  const [height, width] = facts.cells;
  const canvas = el("canvas.map", { width, height, role: "img", "aria-label": "Where it fires" });
  const pixels = new ImageData(width, height);
  profile.forEach((byte, i) => {
    const [red, green, blue] = inferno(0.35 + (0.65 * byte) / 255);
    pixels.data.set([red, green, blue, byte ? 90 + (165 * byte) / 255 : 0], 4 * i);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

// Where a position lies, as shares of width and height, and how large a cell is; null where there is no map.
function peakOf(facts, position) {
  if (!facts.grid || position < 0) return null;
  const [height, width] = facts.grid;
  return { x: ((position % width) + 0.5) / width, y: (Math.floor(position / width) + 0.5) / height, width: 1 / width, height: 1 / height };
}

function peakNode(peak) {
  return el("span.peakbox", { css: {
    "--left": peak.x - peak.width / 2, "--top": peak.y - peak.height / 2, "--width": peak.width, "--height": peak.height,
  } });
}

// Picture, map and peak over one another; the picture is missing where it did not decode or none is kept.
function framed(facts, sample, profile, alt) {
  const peak = peakOf(facts, sample.position);
  return el("span.frame", { css: { "--aspect": facts.picture ? facts.picture[0] / facts.picture[1] : facts.grid ? facts.grid[1] / facts.grid[0] : 1 } },
    facts.picture && sample.drawn ? picture(facts, sample.number, alt) : el("span.nopicture", {}, facts.picture ? "not decoded" : "no picture kept"),
    profile ? mapNode(facts, profile) : null,
    peak ? peakNode(peak) : null);
}

// Three cells around the peak, at least a quarter of the picture and at most half.
function cropNode(facts, sample) {
  const peak = peakOf(facts, sample.position);
  if (!peak || !facts.picture || !sample.drawn) return null;
  const size = Math.max(0.25, Math.min(0.5, 3 * Math.max(peak.width, peak.height)));
  const from = (centre) => Math.max(0, Math.min(1 - size, centre - size / 2));
  const image = picture(facts, sample.number, "The part around the peak");
  return el("span.frame.crop", { css: { "--aspect": facts.picture[0] / facts.picture[1], "--zoom": 1 / size, "--x": from(peak.x), "--y": from(peak.y) } }, image);
}

function textOf({ prompt }) {
  return typeof prompt === "string" ? prompt : prompt[0].filter((_, i) => !prompt[1].includes(i)).join("").trim();
}

// The strongest: map and crop side by side, and what the store says below.
function pictureList(facts, samples, profiles) {
  return el("ol.cards", {}, samples.map((sample, i) => {
    const text = textOf(sample);
    const labels = facts.labels.map((label, j) => `${label} ${sample.labels[j]}`).join(", ");
    return el("li.card", {},
      el("span.pair", {}, framed(facts, sample, profiles[i], text || labels),
        el("span.side-by", {}, cropNode(facts, sample),
          el("span.figures", {}, el("strong", { title: strengthSays(sample) }, value(sample.strength)), sample.timestep >= 0 ? el("span", {}, `t = ${sample.timestep}`) : null))),
      caption(facts, sample),
      text ? el("span.text", { dir: "auto", title: text }, text) : null);
  }));
}

// Weaker ones, and those of a timestep: small, the peak marked.
function pictureStrip(facts, samples, showQuantile) {
  return el("ol.strip", {}, samples.map((sample) => {
    const text = textOf(sample);
    const labels = sample.labels.filter(Boolean).join(", ");
    return el("li", { title: [text, labels, strengthSays(sample)].filter(Boolean).join("\n") },
      framed(facts, sample, null, text || labels),
      el("span.figures", {}, el("strong", {}, value(sample.strength)), showQuantile ? el("span", {}, percent(sample.quantile)) : null));
  }));
}
