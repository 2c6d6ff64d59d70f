// The table of latents.
"use strict";

const SEARCH_WAITS = 150; // ms

(async () => {
  const facts = await startPage("latents");
  if (!facts) return;
  document.title = `Latents of ${facts.name}`;
  let state = readState(location.hash);
  let latents = [];
  let turn = 0;

  const names = ["latent", ...facts.columns];
  const search = document.querySelector("#search");
  const status = el("p.status", { role: "status", "aria-live": "polite" });
  const sort = el("select", { id: "sort" }, names.map((name) => el("option", { value: name }, describeColumn(name).title)));
  const direction = el("button.icon", { type: "button" });
  const dead = el("select", { id: "dead" },
    [["hide", "hidden"], ["show", "shown"], ["only", "only"]].map(([key, text]) => el("option", { value: key }, text)));
  const ranges = el("div.ranges");
  const box = el("div.rows", {
    role: "table", tabindex: 0, "aria-label": "Latents", "aria-colcount": names.length + 1,
    css: { "--labels": facts.labels.length, "--words": facts.image ? (facts.tagged ? "17rem" : "9rem") : "12rem" },
  });
  const head = el("div.head", { role: "row", "aria-rowindex": 1 });
  box.append(el("div", { role: "rowgroup", class: "sticky" }, head));
  document.querySelector("main").append(
    el("div.toolbar", {},
      el("h1", {}, "Latents"), status,
      el("div.controls", {},
        el("label", {}, el("span", {}, "Sort by"), sort), direction,
        el("label", {}, el("span", {}, "Dead"), dead),
        rangeForm(facts, (name, range) => change({ ranges: new Map([...state.ranges, [name, range]]) }))),
      ranges),
    box);

  const rowHeight = () => parseFloat(getComputedStyle(box).getPropertyValue("--row"));
  const table = virtualRows(box, rowHeight, (index) => row(facts, latents[index], () => state));

  function change(part) {
    state = { ...state, at: null, ...part };
    history.replaceState(null, "", `#${writeState(state)}`);
    update();
  }

  async function update() {
    const mine = ++turn;
    box.setAttribute("aria-busy", "true");
    if (search.value !== state.q && document.activeElement !== search) search.value = state.q;
    sort.value = state.sort;
    dead.value = state.dead;
    direction.textContent = state.down ? "↓" : "↑";
    direction.title = state.down ? "Largest first" : "Smallest first";
    direction.setAttribute("aria-label", direction.title);
    drawHead();
    drawRanges();
    const show = (found, share) => {
      if (mine !== turn) return true;
      latents = found;
      table.show(latents.length);
      status.textContent = share < 1 ? `searching: ${Math.round(100 * share)} %` : `${count(found.length)} of ${plural(facts.latents, "latent")}`;
      none.hidden = found.length > 0 || share < 1;
      return false;
    };
    try {
      const found = await ordered(facts, state, show);
      if (mine === turn) {
        show(found, 1);
        box.scrollTop = 0;
        table.go(Math.max(0, state.at === null ? 0 : latents.indexOf(state.at)), false);
        box.removeAttribute("aria-busy");
      }
    } catch (error) {
      fail(error);
    }
  }

  const none = el("p.empty", { hidden: true }, "No latents match. ",
    el("button", { type: "button", on: { click: () => { search.value = ""; change({ q: "", ranges: new Map(), dead: "hide" }); } } }, "Show all"));
  box.append(none);

  function drawHead() {
    const header = (name) => {
      const { title, short, help } = describeColumn(name);
      const now = state.sort === name;
      return el("span", { role: "columnheader", class: `c-${name.endsWith(".purity") ? "purity" : name}`, "aria-sort": now ? (state.down ? "descending" : "ascending") : null },
        el("button", {
          type: "button", title: help,
          // The first click sorts largest first, except for numbers of latents.
          on: { click: () => change(now ? { down: !state.down } : { sort: name, down: name !== "latent" }) },
        }, short ?? title, el("span.arrow", { "aria-hidden": "true" }, now ? (state.down ? "↓" : "↑") : "")));
    };
    head.replaceChildren(
      header("latent"),
      el("span.c-words", { role: "columnheader" }, facts.kind === "image" ? "Top images" : "Top tokens"),
      ...facts.columns.map(header));
  }

  function drawRanges() {
    ranges.replaceChildren(...[...state.ranges].map(([name, [low, high]]) => {
      const { title, show } = describeColumn(name);
      const says = !Number.isFinite(low) ? `${title} at most ${show(high)}` : !Number.isFinite(high) ? `${title} at least ${show(low)}` : `${title} ${show(low)} to ${show(high)}`;
      return el("button.chip", { type: "button", title: "Remove this filter", "aria-label": `Remove the filter: ${says}`, on: { click: () => {
        const left = new Map(state.ranges);
        left.delete(name);
        change({ ranges: left });
      } } }, says, el("span", { "aria-hidden": "true" }, " ×"));
    }));
  }

  let timer;
  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => change({ q: search.value }), SEARCH_WAITS);
  });
  search.form.addEventListener("submit", () => {
    clearTimeout(timer);
    change({ q: search.value });
    table.go(0);
  });
  search.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") {
      event.preventDefault();
      table.go(0);
    }
  });
  sort.addEventListener("change", () => change({ sort: sort.value, down: sort.value !== "latent" }));
  direction.addEventListener("click", () => change({ down: !state.down }));
  dead.addEventListener("change", () => change({ dead: dead.value }));
  addEventListener("hashchange", () => {
    state = readState(location.hash);
    update();
  });
  onKey(["j", "k", "ArrowDown", "ArrowUp"], "next or previous row", (event) => table.key(event));
  onKey(["Enter"], "open the latent", () => box.querySelector(".active a")?.click());
  box.addEventListener("keydown", (event) => {
    if (["PageDown", "PageUp", "Home", "End"].includes(event.key)) table.key(event);
  });
  update();
})();

// A row, filled when its chunk is loaded.
function row(facts, latent, state) {
  const node = el("div.row");
  const tableState = () => writeState(state());
  const mark = (name) => (name === state().sort ? ".sorted" : "");
  const size = facts.chunk.rows;
  const key = `rows/${Math.floor(latent / size)}`;
  const link = el("a", { href: latentAddress(latent), tabindex: -1 }, latent);
  link.addEventListener("focus", () => (link.href = latentAddress(latent, tableState())));
  link.addEventListener("pointerdown", () => (link.href = latentAddress(latent, tableState())));
  const fill = (chunk) => {
    const [words, tag, images, values, classes] = chunk[latent % size];
    const cells = facts.columns.map((name, i) => {
      if (name.endsWith(".purity")) {
        const nth = facts.columns.slice(0, i).filter((other) => other.endsWith(".purity")).length;
        const majority = classes[nth];
        return el(`span.c-purity.nth-${nth}${mark(name)}`, { role: "cell", title: values[i] === null ? "fires on too few samples" : `${describeColumn(name).title} ${fixed(values[i])}: ${className(majority)}` },
          values[i] === null ? el("span.muted", {}, NONE) : [bar(values[i]), el("span.figure", {}, fixed(values[i])), el("span.class", { dir: "auto" }, className(majority))]);
      }
      const { title, show } = describeColumn(name);
      return el(`span.number.c-${name}${mark(name)}`, { role: "cell", "data-name": title }, values[0] === 0 && name !== "samples" ? NONE : show(values[i]));
    });
    node.append(
      el("span.c-words", { role: "cell", title: [tag, words].filter(Boolean).join(": ") },
        miniatures(facts, images), tag ? el("span.tag", {}, tag) : null,
        el("span.words", { dir: "auto" }, words || (values[0] === 0 ? "dead" : ""))),
      ...cells);
  };
  node.append(el("span.c-latent", { role: "cell" }, link)); // added before the chunk is loaded: it may have the focus
  if (arrived.has(key)) fill(arrived.get(key));
  else load(key).then(fill).catch(fail);
  node.addEventListener("click", (event) => event.target.closest("a") || getSelection().toString() || (location.href = latentAddress(latent, tableState())));
  return node;
}

function rangeForm(facts, act) {
  const column = el("select", { "aria-label": "Column" }, facts.columns.map((name) => el("option", { value: name }, describeColumn(name).title)));
  const low = el("input", { type: "number", step: "any", placeholder: "from", "aria-label": "At least" });
  const high = el("input", { type: "number", step: "any", placeholder: "to", "aria-label": "At most" });
  const percents = el("span", { hidden: true }, "%");
  const form = el("form", {}, column, low, high, percents, el("button", {}, "Add"));
  const choose = () => (percents.hidden = describeColumn(column.value).unit === 1);
  column.addEventListener("change", choose);
  choose();
  const details = el("details.filter", {}, el("summary", {}, "Filter"), form);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (low.value === "" && high.value === "") return;
    const { unit } = describeColumn(column.value);
    const ends = [low.value === "" ? -Infinity : unit * Number(low.value), high.value === "" ? Infinity : unit * Number(high.value)];
    act(column.value, ends.sort((a, b) => a - b));
    details.open = false;
    low.value = high.value = "";
  });
  return details;
}
