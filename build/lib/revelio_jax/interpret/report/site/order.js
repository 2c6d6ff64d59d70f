// Which latents a table holds, and in which order.
"use strict";

// Numbers of the latents that a state asks for. Columns and index are read when a state first needs them.
// tell(latents, share) hears of them while a search goes on, and may return true to end it.
async function ordered(facts, state, tell = () => false) {
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
  const found = [];
  const size = facts.chunk.search;
  let next = 0;
  for (let piece = 0; piece * size < facts.latents; piece++) {
    const lines = await searchLines(piece);
    for (; next < latents.length && latents[next] < (piece + 1) * size; next++) {
      const line = lines[latents[next] - piece * size];
      if (terms.every((term) => line.includes(term) || String(latents[next]) === term.replace(/^#/, ""))) {
        found.push(latents[next]);
      }
    }
    if (tell(sort(found.slice()), Math.min(1, ((piece + 1) * size) / facts.latents))) break;
  }
  return sort(found);
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

// Latents without a value come last either way.
function sorted(latents, column, down) {
  if (!column) return down ? latents.reverse() : latents;
  const sign = down ? -1 : 1;
  return latents.sort((a, b) => {
    const [x, y] = [column[a], column[b]];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
    return sign * (x - y) || a - b;
  });
}

// What a column is called, what it says, and how its numbers are shown; shares are typed as they are shown, in percent.
function describeColumn(name) {
  const known = {
    latent: ["Latent", "its number in the SAE"],
    frequency: ["Frequency", "share of the rows on which it fires", percent],
    mean: ["Mean", "of its values where it fires"],
    max: ["Max", "its largest value"],
    spread: ["Spread", "share of a sample's positions on which it fires, where it does", percent],
    samples: ["Samples", "on how many it fires", count],
  };
  if (known[name]) {
    const [title, help, show = value] = known[name];
    return { title, help, show, unit: show === percent ? 0.01 : 1 };
  }
  const label = name.replace(/\.purity$/, "");
  return { title: `Purity: ${label}`, short: label, help: `share of the most frequent ${label} among its strongest samples`, show: fixed, unit: 1 };
}
