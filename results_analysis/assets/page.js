"use strict";
(() => {
  const cards = {};
  let words = {};
  for (const data of document.querySelectorAll("script.cells")) {
    const found = JSON.parse(data.textContent);
    words = found.words;
    Object.assign(cards, found.cards);
  }

  // Text goes into the page as text only: no markup in a name is ever parsed.
  const element = (name, text, attributes = {}) => {
    const made = document.createElement(name);
    if (text !== null) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const drawing = (name, attributes, text = "") => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  };
  const digits = (v) => String(Number(v.toPrecision(3)));

  const WIDTH = 340, HEIGHT = 96, LEFT = 6, TOP = 14, BOTTOM = 14;
  const DASHES = ["", "6 2", "2 2", "8 2 2 2", "1 3"];

  // Symmetric logarithm where sizes span decades, as in the report's figures.
  const scaling = (curve, values) => {
    const sizes = values.filter((v) => v !== 0).map(Math.abs);
    const most = Math.max(...sizes), least = Math.min(...sizes);
    if (!curve.log || sizes.length === 0 || Math.log10(most / least) < 1.5) return (v) => v;
    const linear = Math.max(least, most / 1e3);
    return (v) => Math.sign(v) * (Math.abs(v) < linear ? Math.abs(v) / linear : 1 + Math.log10(Math.abs(v) / linear));
  };

  const chart = (curve) => {
    const values = curve.seeds.flatMap((s) => s.y.filter((v) => v !== null));
    const title = `${curve.name} (${curve.unit})`;
    if (values.length === 0) return element("p", `${title}: ${words.none}`);
    const scale = scaling(curve, values), last = curve.steps;
    let low = Math.min(...values), high = Math.max(...values);
    if (curve.name.startsWith("success")) [low, high] = [0, 1];
    const span = scale(high) - scale(low) || 1;
    const px = (x) => LEFT + (x / last) * (WIDTH - 2 * LEFT);
    const py = (y) => HEIGHT - BOTTOM - ((scale(y) - scale(low)) / span) * (HEIGHT - BOTTOM - TOP);
    const label = `${title}: ${digits(low)} – ${digits(high)}`;
    const svg = drawing("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
    svg.append(drawing("text", { x: LEFT, y: 9 }, label));
    svg.append(drawing("line", { class: "axis", x1: LEFT, x2: WIDTH - LEFT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }));
    svg.append(drawing("text", { x: WIDTH - LEFT, y: HEIGHT - 3, "text-anchor": "end" }, `${words.step} ${last}`));
    curve.seeds.forEach((seed, i) => {
      const points = curve.x.map((x, k) => [x, seed.y[k]]).filter(([, y]) => y !== null).map(([x, y]) => [px(x), py(y)]);
      if (points.length === 0) return;
      const path = points.map((p) => p.map((v) => v.toFixed(1)).join(",")).join(" ");
      svg.append(drawing("polyline", { class: "seed", points: path, "stroke-dasharray": DASHES[i % DASHES.length] }));
      const [x, y] = points[points.length - 1];
      if (points.length === 1) svg.append(drawing("circle", { class: "dot", cx: x, cy: y, r: 2 }));
      if (seed.stop) svg.append(drawing("path", { class: "stop", d: `M${x - 4},${y - 4}l8,8m0,-8l-8,8` }));
    });
    return svg;
  };

  const legend = (seeds) => {
    const svg = drawing("svg", { viewBox: `0 0 ${WIDTH} ${14 * Math.ceil(seeds.length / 5)}`, "aria-hidden": "true" });
    seeds.forEach((seed, i) => {
      const x = LEFT + 66 * (i % 5), y = 8 + 14 * Math.floor(i / 5);
      svg.append(drawing("path", { class: "key", d: `M${x},${y - 3}h20`, "stroke-dasharray": DASHES[i % DASHES.length] }));
      svg.append(drawing("text", { x: x + 23, y }, `${words.seed} ${seed.seed}`));
    });
    return svg;
  };

  const box = element("div", null, { id: "card", role: "region", "aria-live": "polite" });
  box.hidden = true;
  document.body.append(box);
  let shown = null, pinned = false, leaving = 0;

  const hide = () => {
    if (shown) shown.setAttribute("aria-expanded", "false");
    box.hidden = true;
    shown = null;
    pinned = false;
  };
  const place = (cell) => {
    const at = cell.getBoundingClientRect(), own = box.getBoundingClientRect();
    const right = at.right + 8 + own.width < window.innerWidth ? at.right + 8 : at.left - own.width - 8;
    box.style.left = `${Math.min(Math.max(8, right), window.innerWidth - own.width - 8)}px`;
    box.style.top = `${Math.max(8, Math.min(at.top, window.innerHeight - own.height - 8))}px`;
  };
  const show = (cell) => {
    clearTimeout(leaving);
    const card = cards[cell.dataset.cell];
    if (!card || cell === shown) return;
    hide();
    const facts = element("dl", null);
    for (const [name, value] of card.facts) facts.append(element("dt", name), element("dd", value));
    const close = element("button", "×", { class: "close", type: "button", "aria-label": words.close });
    close.addEventListener("click", () => { const back = shown; hide(); back?.focus({ preventScroll: true }); hide(); });
    const stopped = card.curves.some((c) => c.seeds.some((s) => s.stop)) ? [element("p", `× ${words.stopped}`)] : [];
    const why = card.why ? [element("p", card.why, { class: "warning" })] : [];
    const head = [close, element("h4", card.title), element("p", card.status)];
    box.replaceChildren(...head, ...card.curves.map(chart), legend(card.curves[0].seeds), ...stopped, ...why, facts);
    box.setAttribute("aria-label", card.title);
    box.hidden = false;
    shown = cell;
    cell.setAttribute("aria-expanded", "true");
    place(cell);
  };
  const leave = () => { leaving = setTimeout(() => { if (!pinned) hide(); }, 250); };

  for (const cell of document.querySelectorAll("[data-cell]")) {
    cell.addEventListener("pointerenter", (e) => { if (e.pointerType === "mouse" && !pinned) show(cell); });
    cell.addEventListener("pointerleave", leave);
    cell.addEventListener("focus", () => { if (cell.matches(":focus-visible")) { show(cell); pinned = true; } });
    cell.addEventListener("blur", (e) => { if (!box.contains(e.relatedTarget)) hide(); });
    cell.addEventListener("click", () => { show(cell); pinned = true; });
  }
  box.addEventListener("pointerenter", () => clearTimeout(leaving));
  box.addEventListener("pointerleave", leave);
  document.addEventListener("keydown", (e) => { if (e.key === "Escape") hide(); });
  document.addEventListener("pointerdown", (e) => {
    if (shown && !box.contains(e.target) && !e.target.closest("[data-cell]")) hide();
  });

  const sort = (table, column, direction) => {
    const key = (row) => {
      const cell = row.cells[column];
      return "sort" in cell.dataset ? Number(cell.dataset.sort) : cell.textContent;
    };
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
      return direction * (typeof x === "number" ? x - y : x.localeCompare(y));
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  };
  for (const button of document.querySelectorAll("table.sortable thead button")) {
    button.addEventListener("click", () => {
      const head = button.parentElement, direction = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
      sort(head.closest("table"), head.cellIndex, direction);
    });
  }

  // What is folded is open on paper.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const fold of opened) fold.open = true;
  });
  window.addEventListener("afterprint", () => { for (const fold of opened) fold.open = false; });
})();
