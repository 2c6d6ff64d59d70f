// Histograms and maps of numbers.
"use strict";

// Draws overlaid histograms. series: [{counts, name, look}], as shares of each series if shares is set.
// tick(edge) returns the label of an edge or null; address(low, high, i, first, last) the link of a bar.
function histogram({ edges, series, tick, caption, unit, shares, address }) {
  const used = edges.slice(0, -1).map((_, i) => series.some(({ counts }) => counts[i] > 0));
  const first = Math.max(0, used.indexOf(true) - 1);
  const last = Math.min(used.length - 1, used.lastIndexOf(true) + 1);
  if (!used.includes(true)) return el("figure.chart", {}, el("figcaption", {}, caption), empty("No values."));
  const whole = series.map(({ counts }) => (shares ? Math.max(1, sum(counts)) : 1));
  const most = Math.max(...series.flatMap(({ counts }, number) => counts.map((n) => n / whole[number])));
  const place = (edge) => (100 * (edge - edges[first])) / (edges[last + 1] - edges[first]);
  const total = series.map(({ name, counts }) => `${name ? `${name}: ` : ""}${count(sum(counts))} ${unit}`).join(", ");
  const plot = el("div.plot", { role: "img", "aria-label": `Histogram. ${total}.` },
    el("span.top", {}, shares ? percent(most) : count(most)));
  for (const [number, { counts, look, name }] of series.entries()) {
    for (let i = first; i <= last; i++) {
      if (!counts[i]) continue;
      const says = `${name ? `${name}, ` : ""}${tick(edges[i], true)} to ${tick(edges[i + 1], true)}: ${count(counts[i])} ${unit}${shares ? `, ${percent(counts[i] / whole[number])}` : ""}`;
      const where = address?.(edges[i], edges[i + 1], i, first, last);
      plot.append(el(`${where ? "a" : "i"}.column.${look ?? "one"}`, {
        title: says, href: where, tabindex: where ? -1 : null,
        css: {
          "--left": place(edges[i]), "--width": place(edges[i + 1]) - place(edges[i]),
          "--height": (100 * counts[i]) / whole[number] / most,
        },
      }));
    }
  }
  return el("figure.chart", {}, el("figcaption", {}, caption), plot, axis(edges.slice(first, last + 2), place, tick));
}

// Tick labels under a plot, as many as fit.
function axis(edges, place, tick) {
  let ticks = edges.map((edge) => [edge, tick(edge)]).filter(([, text]) => text !== null);
  if (ticks.length < 3) ticks = edges.map((edge) => [edge, tick(edge, true)]);
  const longest = Math.max(...ticks.map(([, text]) => text.length));
  const step = Math.ceil(ticks.length / Math.min(6, Math.floor(32 / (longest + 2)))); // 32 characters fit under the narrowest plot
  return el("div.axis", { "aria-hidden": "true" },
    ticks.filter((_, i) => i % step === 0).map(([edge, text]) => el("span", { css: { "--left": place(edge) } }, text)));
}

// A map of the number of latents by frequency and purity; a cell links to the table of its latents.
function densityMap({ x, y, bins, xTick, yTick, says, address, caption, labels }) {
  if (!bins.length) return el("figure.chart", {}, el("figcaption", {}, caption), empty("No latent has both values."));
  const [first, last] = [Math.min(...bins.map(([i]) => i)), Math.max(...bins.map(([i]) => i))];
  const most = Math.max(...bins.map(([, , n]) => n));
  const place = (edge) => (100 * (edge - x[first])) / (x[last + 1] - x[first]);
  const height = (edge) => (100 * (edge - y[0])) / (y[y.length - 1] - y[0]);
  const plot = el("div.plot.map", { role: "img", "aria-label": `Map of ${count(sum(bins.map(([, , n]) => n)))} latents. ${labels}` });
  for (const [i, j, n] of bins) {
    plot.append(el("a.cell", {
      href: address(i, j), title: says(i, j, n), tabindex: -1,
      css: {
        "--left": place(x[i]), "--width": place(x[i + 1]) - place(x[i]),
        "--bottom": height(y[j]), "--tall": height(y[j + 1]) - height(y[j]), "--heat": heat(n, most),
      },
    }));
  }
  for (const edge of y.filter((_, i) => i % 5 === 0)) {
    plot.append(el("span.side", { "aria-hidden": "true", css: { "--bottom": height(edge) } }, yTick(edge)));
  }
  return el("figure.chart", {}, el("figcaption", {}, caption), plot, axis(x.slice(first, last + 2), place, xTick));
}

// Logarithmic, from 0.15 to 1, so that small counts stay visible.
function heat(n, most) {
  return most <= 1 ? 1 : 0.15 + (0.85 * Math.log(n)) / Math.log(most);
}

function sum(numbers) {
  return numbers.reduce((a, b) => a + b, 0);
}

// The label of 10^edge: null unless it is a power of ten or exactly is set.
function powerTick(edge, exactly = false) {
  if (exactly) return percent(10 ** edge);
  return Number.isInteger(edge) ? percent(10 ** edge) : null;
}
