// What every page has: a header with the search, the theme, the keys and what they do.
"use strict";

const keyHandlers = []; // {keys, says, act(event)}

// On a page, a key does something; the help says what. Keys are left alone where text is written.
function onKey(keys, says, act) {
  keyHandlers.push({ keys, says, act });
}

async function startPage(here, table = "") {
  const facts = await load("facts").catch(fail);
  if (!facts) return null;
  const link = (name, address, current) =>
    el("a", { href: address, "aria-current": current ? "page" : null }, name);
  const search = el("input", {
    type: "search", id: "search", name: "q", placeholder: "Search latents", autocomplete: "off",
    spellcheck: "false", "aria-label": "Search latents by word, tag, class or number", "aria-keyshortcuts": "/",
  });
  const form = el("form.search", { role: "search" }, search, el("kbd", { "aria-hidden": "true" }, "/"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (here !== "latents") location.href = tableAddress(writeState({ ...readState(""), q: search.value }));
  });
  const header = document.querySelector("header");
  header.append(
    el("a.run", { href: "index.html", title: `${facts.name}: ${facts.site}` },
      el("strong", {}, facts.name), " ", el("span", {}, facts.site)),
    el("nav", { "aria-label": "Pages" },
      link("Overview", "index.html", here === "index"),
      link("Latents", tableAddress(table), here === "latents"),
      facts.compare.length ? link("Compare", "compare.html", here === "compare") : null),
    form,
    el("div.tools", {}, themeButton(),
      el("button.icon", { type: "button", title: "Keys (?)", "aria-label": "Keyboard shortcuts", on: { click: help } }, "?")),
  );
  document.querySelector("footer").append(
    `${facts.site} of ${facts.model}`, el("span.dot"), `made ${facts.made} by revelio_jax ${facts.version}`);
  onKey(["/"], "search", () => (search.focus(), search.select()));
  onKey(["?"], "this help", help);
  onKey(["t"], "light, dark, or as the system has it", () => document.querySelector("#theme").click());
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.querySelector("dialog[open]")) return;
    if (event.target.closest("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const handler = keyHandlers.find(({ keys }) => keys.includes(event.key));
    if (handler) {
      event.preventDefault();
      handler.act(event);
    }
  });
  return facts;
}

function themeButton() {
  const looks = { system: "◐", light: "☀", dark: "☾" };
  const button = el("button.icon", { type: "button", id: "theme" });
  const show = () => {
    const theme = document.documentElement.dataset.theme;
    button.textContent = looks[theme];
    button.title = `Theme: ${theme} (t)`;
    button.setAttribute("aria-label", `Theme: ${theme}`);
  };
  button.addEventListener("click", () => {
    chooseTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]);
    show();
  });
  show();
  return button;
}

function help() {
  const NAMES = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓" };
  const dialog = el("dialog.help", { "aria-labelledby": "help-title" },
    el("h2", { id: "help-title" }, "Keys"),
    el("dl", {}, keyHandlers.map(({ keys, says }) => [
      el("dt", {}, keys.map((key) => el("kbd", {}, NAMES[key] ?? key))), el("dd", {}, says)])),
    el("form", { method: "dialog" }, el("button", { autofocus: true }, "Close")));
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => event.key === "?" && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
}

function fail(error) {
  document.querySelector("main").append(el("p.empty", { role: "alert" }, error.message));
  return null;
}

// A sentence where there is nothing to show.
function empty(text) {
  return el("p.empty", {}, text);
}

// A label beside what it names.
function chip(label, name, extra = "") {
  return el("span.chip", { title: `${label}: ${className(name)}` }, el("span.of", {}, label), " ", className(name), extra);
}

// A bar from 0 to 1.
function bar(share) {
  return el("span.bar", { "aria-hidden": "true", css: { "--share": Math.max(0, Math.min(1, share ?? 0)) } });
}

// A select with its name; nothing where there is no choice.
function chooser(name, options, act, chosen = options[0]?.[0]) {
  if (options.length < 2) return null;
  return el("label.choose", {}, el("span", {}, name),
    el("select", { on: { change: (event) => act(event.target.value) } },
      options.map(([key, text]) => el("option", { value: key, selected: key === chosen }, text))));
}
