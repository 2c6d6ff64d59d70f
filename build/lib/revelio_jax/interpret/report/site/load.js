// Data come as scripts that call put: from disk, a browser allows nothing else.
"use strict";

const arrived = new Map(); // key -> value
const awaited = new Map(); // key -> promise
const arrivals = new Map(); // key -> what ends its promise

function put(key, value) {
  arrived.set(key, value);
  arrivals.get(key)?.(value);
}

// What data/KEY.js holds.
function load(key) {
  if (!awaited.has(key)) {
    awaited.set(
      key,
      new Promise((resolve, reject) => {
        arrivals.set(key, resolve);
        const script = document.createElement("script");
        script.src = `data/${key}.js`;
        script.onload = () => script.remove();
        script.onerror = () => reject(new Error(`data/${key}.js is missing: the report is not whole`));
        document.head.append(script);
      }),
    );
  }
  return awaited.get(key);
}

// The bytes of what scripts.packed made, as an ArrayBuffer.
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

const columnCache = new Map();

// A packed column of numbers, NaN where there is none.
async function loadColumn(key) {
  if (!columnCache.has(key)) columnCache.set(key, new Float32Array(await unpack(await load(key))));
  return columnCache.get(key);
}

// Which latents fire: a function of a latent's number.
async function loadFiring(facts) {
  const bits = new Uint8Array(await unpack(facts.firing));
  return (latent) => ((bits[latent >> 3] >> (latent & 7)) & 1) === 1;
}
