// Elements and the numbers in them. Text goes in as text: prompts are written by strangers.
"use strict";

// el("a.button", {href, on: {click}, css: {"--x": 1}}, ...children); children are nodes, texts or lists.
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

// A value of a latent; always three digits, so that columns are straight.
function value(x) {
  return x === null || x === undefined || Number.isNaN(x) ? NONE : shorten(x, exactly3);
}

// The same where room is short.
function short(x) {
  return shorten(x, digits3);
}

function shorten(x, format) {
  return x !== 0 && Math.abs(x) < 1e-3 ? x.toExponential(1) : format.format(x);
}

// A share between 0 and 1 in percent.
function percent(share) {
  if (share === null || share === undefined || Number.isNaN(share)) return NONE;
  const x = 100 * share;
  return x !== 0 && x < 1e-3 ? `${x.toExponential(0)} %` : `${digits2.format(x)} %`;
}

// A purity, an entropy: always two places, so that columns are straight.
function fixed(x) {
  return x === null || x === undefined || Number.isNaN(x) ? NONE : x.toFixed(2);
}

function plural(n, one, many = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : many}`;
}

function className(name) {
  return name === "" ? "(none)" : name;
}

// Signs that are not seen but turn or break what stands around them, made to be seen.
function visible(text) {
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]/g,
    (sign) => `[${sign.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}]`);
}

// How a latent is named: its tag where it has one, else its words.
function title(named) {
  const [words, tag] = named ?? ["", ""];
  return tag || words;
}

function picturePath(sample) {
  return `thumbnails/${String(Math.floor(sample / 1000)).padStart(4, "0")}/${sample}.webp`;
}

// A picture of a sample; small ones are shown with their pixels seen.
function picture(facts, sample, alt = "") {
  const [width, height] = facts.picture;
  const crisp = Math.max(width, height) <= 64 ? ".crisp" : "";
  return el(`img.picture${crisp}`, { src: picturePath(sample), alt, width, height, loading: "lazy", decoding: "async" });
}

function miniatures(facts, samples) {
  return el("span.miniatures", {}, (samples ?? []).map((sample) => picture(facts, sample)));
}
