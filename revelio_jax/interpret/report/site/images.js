// Images with a heatmap of where a latent fires, and the part around its peak.
"use strict";

// The color map inferno: its lightness rises evenly, so it is readable without color.
const INFERNO = [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]];

function inferno(share) {
  const at = share * (INFERNO.length - 1);
  const [low, high] = [INFERNO[Math.floor(at)], INFERNO[Math.ceil(at)]];
  return low.map((from, i) => from + (high[i] - from) * (at - Math.floor(at)));
}

// A canvas with one pixel per cell, transparent where the latent is silent.
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

// The center of a position and the size of a cell as shares of width and height; null without a map.
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

// Image, heatmap and peak overlaid, or a note if the image was not saved or cannot be decoded.
function framed(facts, sample, profile, alt) {
  const peak = peakOf(facts, sample.position);
  return el("span.frame", { css: { "--aspect": facts.image ? facts.image[0] / facts.image[1] : facts.grid ? facts.grid[1] / facts.grid[0] : 1 } },
    facts.image && sample.hasImage ? thumbnail(facts, sample.number, alt) : el("span.noimage", {}, facts.image ? "not readable" : "image not saved"),
    profile ? mapNode(facts, profile) : null,
    peak ? peakNode(peak) : null);
}

// Three cells around the peak, at least a quarter and at most half of each side of the image.
function cropNode(facts, sample) {
  const peak = peakOf(facts, sample.position);
  if (!peak || !facts.image || !sample.hasImage) return null;
  const size = Math.max(0.25, Math.min(0.5, 3 * Math.max(peak.width, peak.height)));
  const from = (center) => Math.max(0, Math.min(1 - size, center - size / 2));
  const image = thumbnail(facts, sample.number, "The part around the peak");
  return el("span.frame.crop", { css: { "--aspect": facts.image[0] / facts.image[1], "--zoom": 1 / size, "--x": from(peak.x), "--y": from(peak.y) } }, image);
}

function textOf({ prompt }) {
  return typeof prompt === "string" ? prompt : prompt[0].filter((_, i) => !prompt[1].includes(i)).join("").trim();
}

// Cards of the top samples: heatmap and crop side by side, labels and prompt below.
function imageList(facts, samples, profiles) {
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

// Small images with the peak marked, for weaker samples and strata.
function imageStrip(facts, samples, showQuantile) {
  return el("ol.strip", {}, samples.map((sample) => {
    const text = textOf(sample);
    const labels = sample.labels.filter(Boolean).join(", ");
    return el("li", { title: [text, labels, strengthSays(sample)].filter(Boolean).join("\n") },
      framed(facts, sample, null, text || labels),
      el("span.figures", {}, el("strong", {}, value(sample.strength)), showQuantile ? el("span", {}, percent(sample.quantile)) : null));
  }));
}
