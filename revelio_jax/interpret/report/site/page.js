// The common parts of all pages: a header with search and theme, and keyboard shortcuts with their help.
"use strict";

const keyHandlers = []; // {keys, description, act(event)}

// Registers a keyboard shortcut and its line in the help. Shortcuts are off while text is typed.
function onKey(keys, description, act) {
  keyHandlers.push({ keys, description, act });
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
      el("button.icon", { type: "button", title: "Keyboard shortcuts (?)", "aria-label": "Keyboard shortcuts", on: { click: help } }, "?")),
  );
  document.querySelector("footer").append(
    `${facts.site} of ${facts.model}`, el("span.dot"), `written ${facts.made} by revelio_jax ${facts.version}`);
  onKey(["/"], "search", () => (search.focus(), search.select()));
  onKey(["?"], "show this help", help);
  onKey(["t"], "switch between light, dark and system theme", () => document.querySelector("#theme").click());
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
    el("h2", { id: "help-title" }, "Keyboard shortcuts"),
    el("dl", {}, keyHandlers.map(({ keys, description }) => [
      el("dt", {}, keys.map((key) => el("kbd", {}, NAMES[key] ?? key))), el("dd", {}, description)])),
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

// A sentence that replaces missing content.
function empty(text) {
  return el("p.empty", {}, text);
}

// A value with its label in front.
function chip(label, name, extra = "") {
  return el("span.chip", { title: `${label}: ${className(name)}` }, el("span.of", {}, label), " ", className(name), extra);
}

// A bar from 0 to 1.
function bar(share) {
  return el("span.bar", { "aria-hidden": "true", css: { "--share": Math.max(0, Math.min(1, share ?? 0)) } });
}

// A labeled select; null with fewer than two options.
function chooser(name, options, act, chosen = options[0]?.[0]) {
  if (options.length < 2) return null;
  return el("label.choose", {}, el("span", {}, name),
    el("select", { on: { change: (event) => act(event.target.value) } },
      options.map(([key, text]) => el("option", { value: key, selected: key === chosen }, text))));
}
