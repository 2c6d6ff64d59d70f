// The latents in a table, filtered and sorted.
"use strict";

// The numbers of the latents that match a state, sorted. Columns and search index are loaded when first needed.
// report(latents, share) is called during a search; it returns true to stop the search.
async function ordered(facts, state, report = () => false) {
  const fires = await loadFiring(facts);
  let latents = Array.from({ length: facts.latents }, (_, latent) => latent);
  if (state.dead !== "show") latents = latents.filter((latent) => fires(latent) === (state.dead === "hide"));
  for (const [name, [low, high]] of state.ranges) {
    const column = await columnOf(facts, name);
    if (column) latents = latents.filter((latent) => column[latent] >= low && column[latent] <= high);
  }
  const column = state.sort === "latent" ? null : await columnOf(facts, state.sort);
  const sort = (some) => sorted(some, column, state.down);
  if (!state.q.trim()) return sort(latents);

  const terms = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = [];
  const size = facts.chunk.search;
  let next = 0;
  for (let piece = 0; piece * size < facts.latents; piece++) {
    const lines = await searchLines(piece);
    for (; next < latents.length && latents[next] < (piece + 1) * size; next++) {
      const line = lines[latents[next] - piece * size];
      if (terms.every((term) => line.includes(term) || String(latents[next]) === term.replace(/^#/, ""))) {
        matches.push(latents[next]);
      }
    }
    if (report(sort(matches.slice()), Math.min(1, ((piece + 1) * size) / facts.latents))) break;
  }
  return sort(matches);
}

const lineCache = new Map();

async function searchLines(piece) {
  if (!lineCache.has(piece)) {
    const bytes = await unpack(await load(`search/${piece}`));
    lineCache.set(piece, new TextDecoder().decode(bytes).split("\n"));
  }
  return lineCache.get(piece);
}

async function columnOf(facts, name) {
  const index = facts.columns.indexOf(name);
  return index < 0 ? null : loadColumn(`columns/${index}`);
}

// Latents without a value come last in both directions.
function sorted(latents, column, down) {
  if (!column) return down ? latents.reverse() : latents;
  const sign = down ? -1 : 1;
  return latents.sort((a, b) => {
    const [x, y] = [column[a], column[b]];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
    return sign * (x - y) || a - b;
  });
}

// Title, help and number format of a column. Filters of shares are typed in percent, as they are shown.
function describeColumn(name) {
  const known = {
    latent: ["Latent", "number of the latent in the SAE"],
    frequency: ["Frequency", "share of the rows on which it fires", percent],
    mean: ["Mean", "mean of its values where it fires"],
    max: ["Max", "maximum of its values"],
    spread: ["Spread", "share of a sample's positions on which it fires, if it fires on the sample", percent],
    samples: ["Samples", "number of samples on which it fires", count],
    monosemanticity: ["Monosemanticity", "how similar its samples are to an independent model, weighted by its activation", fixed],
    moran: ["Moran's I", "how similar neighboring positions of its maps are: 1 for large areas, about 0 for scattered positions", fixed],
    localization: ["Localization", "share of its activation in the strongest tenth of the positions of its maps", percent],
    inside: ["On the object", "share of its activation inside the mask of the object", percent],
  };
  if (known[name]) {
    const [title, help, show = value] = known[name];
    return { title, help, show, unit: show === percent ? 0.01 : 1 };
  }
  const label = name.replace(/\.purity$/, "");
  return { title: `Purity: ${label}`, short: label, help: `share of the most frequent ${label} among its top samples`, show: fixed, unit: 1 };
}
