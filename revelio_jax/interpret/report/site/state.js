// The state of the table, kept in the address so that a link shows the same table.
"use strict";

// {q, sort, down, dead, ranges: Map column -> [low, high], at}. dead is hide, show or only. at is the latent from
// which the reader comes back; it is not written into links.
function readState(hash) {
  const params = new URLSearchParams(hash.replace(/^#/, ""));
  const state = { q: "", sort: "latent", down: false, dead: "hide", ranges: new Map(), at: null };
  for (const [key, text] of params) {
    if (key === "q") state.q = text;
    else if (key === "sort") [state.sort, state.down] = [text.replace(/^-/, ""), text.startsWith("-")];
    else if (key === "dead") state.dead = ["show", "only"].includes(text) ? text : "hide";
    else if (key === "at") state.at = Number(text);
    else if (key.startsWith("in.")) {
      const [low, high] = text.split("..").map((end) => (end === "" ? NaN : Number(end)));
      state.ranges.set(key.slice(3), [Number.isNaN(low) ? -Infinity : low, Number.isNaN(high ?? NaN) ? Infinity : high]);
    }
  }
  return state;
}

function writeState(state) {
  const written = new URLSearchParams();
  if (state.q) written.set("q", state.q);
  if (state.sort !== "latent" || state.down) written.set("sort", (state.down ? "-" : "") + state.sort);
  if (state.dead !== "hide") written.set("dead", state.dead);
  for (const [column, [low, high]] of state.ranges) {
    const ends = [low, high].map((end) => (Number.isFinite(end) ? String(end) : ""));
    written.set(`in.${column}`, ends.join(".."));
  }
  return written.toString();
}

// latent.html#17&q=heart: a latent and the table from which it was opened.
function latentAddress(latent, table = "") {
  return `latent.html#${latent}${table ? `&${table}` : ""}`;
}

// The address of a table; at is the latent to scroll to.
function tableAddress(table = "", at = null) {
  const state = [table, at === null ? "" : `at=${at}`].filter(Boolean).join("&");
  return `latents.html${state ? `#${state}` : ""}`;
}
