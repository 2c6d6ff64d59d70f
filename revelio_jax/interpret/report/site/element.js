// Elements and formatted numbers. Prompts are untrusted: they are inserted as text, never as HTML.
"use strict";

// el("a.button", {href, on: {click}, css: {"--x": 1}}, ...children); children are nodes, strings or arrays.
function el(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "on") for (const [type, listen] of Object.entries(value)) node.addEventListener(type, listen);
    else if (key === "css") for (const [name, to] of Object.entries(value)) node.style.setProperty(name, to);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const counts = new Intl.NumberFormat("en");
const digits3 = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const exactly3 = new Intl.NumberFormat("en", { minimumSignificantDigits: 3, maximumSignificantDigits: 3 });
const digits2 = new Intl.NumberFormat("en", { maximumSignificantDigits: 2 });

const NONE = "–";

function count(n) {
  return n === null || n === undefined ? NONE : counts.format(n);
}

// A value of a latent, always with three digits so that columns align.
function value(x) {
  return x === null || x === undefined || Number.isNaN(x) ? NONE : shorten(x, exactly3);
}

// A value with at most three digits, for narrow places.
function short(x) {
  return shorten(x, digits3);
}

function shorten(x, format) {
  return x !== 0 && Math.abs(x) < 1e-3 ? x.toExponential(1) : format.format(x);
}

// A share from 0 to 1 as percent.
function percent(share) {
  if (share === null || share === undefined || Number.isNaN(share)) return NONE;
  const x = 100 * share;
  return x !== 0 && x < 1e-3 ? `${x.toExponential(0)} %` : `${digits2.format(x)} %`;
}

// A purity or entropy, always with two decimals so that columns align.
function fixed(x) {
  return x === null || x === undefined || Number.isNaN(x) ? NONE : x.toFixed(2);
}

function plural(n, one, many = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : many}`;
}

function className(name) {
  return name === "" ? "(none)" : name;
}

// Replaces invisible characters that reverse or break the text around them with their code.
function visible(text) {
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]/g,
    (character) => `[${character.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}]`);
}

// The title of a latent: its tag if it has one, else its words.
function title(named) {
  const [words, tag] = named ?? ["", ""];
  return tag || words;
}

function thumbnailPath(sample) {
  return `thumbnails/${String(Math.floor(sample / 1000)).padStart(4, "0")}/${sample}.webp`;
}

// The thumbnail of a sample; small images are shown with sharp pixels.
function thumbnail(facts, sample, alt = "") {
  const [width, height] = facts.image;
  const crisp = Math.max(width, height) <= 64 ? ".crisp" : "";
  return el(`img.thumbnail${crisp}`, { src: thumbnailPath(sample), alt, width, height, loading: "lazy", decoding: "async" });
}

function miniatures(facts, samples) {
  return el("span.miniatures", {}, (samples ?? []).map((sample) => thumbnail(facts, sample)));
}
