// A list of any length; only the visible rows exist as elements.
"use strict";

const TALLEST = 8e6; // pixels; taller elements do not scroll precisely
const BEYOND = 6; // rows that exist above and below the visible part

// box scrolls; make(index) returns the element of a row. Returns {show(n), go(index), key(event)}.
function virtualRows(box, rowHeight, make) {
  const space = el("div.space", { role: "rowgroup" });
  box.append(space);
  const made = new Map();
  let total = 0;
  let active = 0;
  let height = rowHeight();

  const rowsHeight = () => total * height;
  const head = () => space.offsetTop;
  const seen = () => Math.max(1, box.clientHeight - head());
  // If the rows together are taller than TALLEST, each scrolled pixel moves by more than one.
  const factor = () => {
    const range = Math.min(rowsHeight(), TALLEST) - seen();
    return range > 0 ? Math.max(1, (rowsHeight() - seen()) / range) : 1;
  };

  function draw() {
    height = rowHeight();
    space.style.height = `${Math.min(rowsHeight(), TALLEST)}px`;
    const top = box.scrollTop * factor();
    const first = Math.max(0, Math.floor(top / height) - BEYOND);
    const last = Math.min(total - 1, Math.ceil((top + seen()) / height) + BEYOND);
    for (const [index, row] of made) {
      if ((index < first || index > last) && !row.contains(document.activeElement)) {
        row.remove();
        made.delete(index);
      }
    }
    for (let index = first; index <= last; index++) {
      if (made.has(index)) continue;
      const row = make(index);
      row.setAttribute("role", "row");
      row.setAttribute("aria-rowindex", index + 2);
      made.set(index, row);
      const after = [...made.keys()].filter((other) => other > index);
      space.insertBefore(row, after.length ? made.get(Math.min(...after)) : null);
    }
    for (const [index, row] of made) {
      row.style.transform = `translateY(${Math.round(index * height - top + box.scrollTop)}px)`;
      mark(index);
    }
  }

  function mark(index) {
    const row = made.get(index);
    row?.classList.toggle("active", index === active);
    const link = row?.querySelector("a");
    if (link) link.tabIndex = index === active ? 0 : -1;
  }

  function go(index, focus = true) {
    if (!total) return;
    const before = active;
    active = Math.max(0, Math.min(total - 1, index));
    const top = (active * height) / factor();
    if (active * height < box.scrollTop * factor()) box.scrollTop = top;
    const below = (active + 1) * height - seen();
    if (below > box.scrollTop * factor()) box.scrollTop = Math.ceil(below / factor());
    draw();
    mark(before);
    if (focus) made.get(active)?.querySelector("a")?.focus({ preventScroll: true });
  }

  function show(n) {
    total = n;
    active = Math.min(active, Math.max(0, n - 1));
    for (const row of made.values()) row.remove();
    made.clear();
    box.setAttribute("aria-rowcount", n + 1);
    draw();
  }

  let waiting = false;
  box.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  });
  new ResizeObserver(draw).observe(box);
  space.addEventListener("focusin", (event) => {
    for (const [index, row] of made) {
      if (row.contains(event.target) && index !== active) {
        const before = active;
        active = index;
        mark(before);
        mark(active);
      }
    }
  });

  const page = () => Math.max(1, Math.floor(seen() / height) - 1);
  const steps = {
    ArrowDown: () => active + 1, j: () => active + 1,
    ArrowUp: () => active - 1, k: () => active - 1,
    PageDown: () => active + page(), PageUp: () => active - page(),
    Home: () => 0, End: () => total - 1,
  };
  // Moves the active row if the key is one of steps; returns whether it is.
  function key(event) {
    const step = steps[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return false;
    event.preventDefault();
    const entered = space.contains(document.activeElement) || event.key.length > 1 && event.key[0] !== "A";
    go(entered ? step() : active);
    return true;
  }

  return { show, go, key };
}
