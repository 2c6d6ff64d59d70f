// Data are scripts that call put: on pages opened from disk, browsers refuse fetch.
"use strict";

const arrived = new Map(); // key -> value
const awaited = new Map(); // key -> promise
const arrivals = new Map(); // key -> function that resolves its promise

function put(key, value) {
  arrived.set(key, value);
  arrivals.get(key)?.(value);
}

// The value in data/KEY.js.
function load(key) {
  if (!awaited.has(key)) {
    awaited.set(
      key,
      new Promise((resolve, reject) => {
        arrivals.set(key, resolve);
        const script = document.createElement("script");
        script.src = `data/${key}.js`;
        script.onload = () => script.remove();
        script.onerror = () => reject(new Error(`data/${key}.js is missing: the report is incomplete`));
        document.head.append(script);
      }),
    );
  }
  return awaited.get(key);
}

// The bytes packed by scripts.pack, as an ArrayBuffer.
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

const columnCache = new Map();

// A packed column of numbers, NaN without a value.
async function loadColumn(key) {
  if (!columnCache.has(key)) columnCache.set(key, new Float32Array(await unpack(await load(key))));
  return columnCache.get(key);
}

// A function that returns whether a latent fires on any row.
async function loadFiring(facts) {
  const bits = new Uint8Array(await unpack(facts.firing));
  return (latent) => ((bits[latent >> 3] >> (latent & 7)) & 1) === 1;
}
