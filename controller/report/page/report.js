"use strict";
// Adds to the page what needs a script: tables that sort, lines that can be put out, and the values under the pointer.
// Without it everything is there but that. Text from the store is only ever set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

function made(name, text, ...classes) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  element.classList.add(...classes);
  return element;
}

// Tables: a click on a column's head sorts by it; numbers are in data-value, and rows without one stay last.

function sortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = made("button", head.textContent.trim());
    button.type = "button";
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const isDown = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", isDown ? "descending" : "ascending");
      const rows = [...body.rows];
      const keys = new Map(rows.map((row) => [row, keyOf(row.cells[column])]));
      rows.sort((a, b) => compared(keys.get(a), keys.get(b), isDown ? -1 : 1));
      body.append(...rows);
    });
  });
}

function keyOf(cell) {
  const text = cell.dataset.value ?? cell.textContent.trim();
  const number = Number(text);
  return text === "" ? null : Number.isNaN(number) ? text : number;
}

function compared(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), "en", { numeric: true });
}

// Charts: each panel is a slider through the epochs; pointer and arrow keys move it. A legend's button puts a line out.

function chart(figure, numbers) {
  const hidden = new Set();
  const panels = [...figure.querySelectorAll(".panel")].map((element) => panel(element, numbers, hidden));
  figure.querySelectorAll(".legend li").forEach((item, line) => {
    const button = made("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.append(...item.childNodes);
    item.replaceChildren(button);
    button.addEventListener("click", () => {
      const isHidden = !hidden.delete(line);
      if (isHidden) hidden.add(line);
      button.setAttribute("aria-pressed", String(!isHidden));
      panels.forEach((each) => each.show(line, !isHidden));
    });
  });
}

function panel(element, numbers, hidden) {
  const name = element.dataset.panel;
  const { label, box, x, y, log, lines } = numbers[name];
  const [left, top, right, bottom] = box;
  const svg = element.querySelector("svg");
  const epochs = [...new Set(lines.flatMap((line) => line.epochs))].sort((a, b) => a - b);
  const parts = (line) => svg.querySelectorAll(`[id^="${name}-s${line}-"]`);
  const colors = lines.map((_, line) => {
    const path = svg.querySelector(`[id="${name}-s${line}-line"] path[style*=stroke]`);
    return path ? path.style.stroke : "currentColor";
  });
  const scale = (value) => (log ? Math.log(value) : value);
  const across = (epoch) => left + ((epoch - x[0]) / (x[1] - x[0])) * (right - left);
  const up = (value) => bottom - ((scale(value) - scale(y[0])) / (scale(y[1]) - scale(y[0]))) * (bottom - top);

  const pointer = document.createElementNS(SVG, "g");
  pointer.classList.add("pointer");
  const tip = made("div", undefined, "tip");
  tip.hidden = true;
  svg.append(pointer);
  element.append(tip);

  element.setAttribute("role", "slider");
  element.setAttribute("aria-label", `${element.getAttribute("aria-label")}. Arrow keys go through the epochs`);
  element.setAttribute("aria-valuemin", epochs[0]);
  element.setAttribute("aria-valuemax", epochs.at(-1));
  element.tabIndex = 0;
  let at = epochs.length - 1;
  describe();

  function values() {
    return lines.flatMap((line, number) => {
      const place = line.epochs.indexOf(epochs[at]);
      const value = place < 0 ? null : line.values[place];
      if (hidden.has(number) || value === null) return [];
      const spread = line.spreads ? ` ± ${line.spreads[place].toPrecision(2)}` : "";
      return [{ name: line.name, value, text: value.toPrecision(4) + spread, color: colors[number] }];
    });
  }

  function describe() {
    const told = values().map((each) => `${each.name} ${each.text}`);
    element.setAttribute("aria-valuenow", epochs[at]);
    element.setAttribute("aria-valuetext", `epoch ${epochs[at]}: ${told.join(", ")}`);
  }

  function show() {
    describe();
    const found = values();
    const place = across(epochs[at]);
    const line = document.createElementNS(SVG, "line");
    for (const [key, value] of Object.entries({ x1: place, x2: place, y1: top, y2: bottom })) line.setAttribute(key, value);
    const dots = found.map((each) => {
      const dot = document.createElementNS(SVG, "circle");
      for (const [key, value] of Object.entries({ cx: place, cy: up(each.value), r: 3.5 })) dot.setAttribute(key, value);
      dot.style.fill = each.color;
      return dot;
    });
    pointer.replaceChildren(line, ...dots);
    tip.replaceChildren(made("b", `epoch ${epochs[at]}, ${label}`), ...found.map((each) => {
      const row = made("div");
      const dot = made("i");
      dot.style.background = each.color;
      const words = made("span");
      words.append(dot, each.name);
      row.append(words, made("span", each.text));
      return row;
    }));
    tip.hidden = false;
    const width = svg.viewBox.baseVal.width;
    tip.style.left = place < width / 2 ? `${(100 * (place + 8)) / width}%` : "auto";
    tip.style.right = place < width / 2 ? "auto" : `${(100 * (width - place + 8)) / width}%`;
  }

  function hide() {
    tip.hidden = true;
    pointer.replaceChildren();
  }

  function follow(event) {
    const area = svg.getBoundingClientRect();
    const epoch = x[0] + (((event.clientX - area.left) / area.width * svg.viewBox.baseVal.width - left) / (right - left)) * (x[1] - x[0]);
    at = epochs.reduce((best, each, index) => Math.abs(each - epoch) < Math.abs(epochs[best] - epoch) ? index : best, 0);
    show();
  }

  element.addEventListener("pointermove", follow);
  element.addEventListener("pointerdown", follow);
  element.addEventListener("pointerleave", hide);
  element.addEventListener("focus", () => element.matches(":focus-visible") && show());
  element.addEventListener("blur", hide);
  element.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -5, PageUp: 5, Home: -at, End: epochs.length };
    if (event.key === "Escape") return hide();
    if (!(event.key in steps)) return;
    event.preventDefault();
    at = Math.min(Math.max(at + steps[event.key], 0), epochs.length - 1);
    show();
  });

  return {
    show(line, isShown) {
      parts(line).forEach((part) => { part.style.display = isShown ? "" : "none"; });
      describe();
      if (!tip.hidden) show();
    },
  };
}

// Runs: a link to a run opens it; before printing all are opened, and afterwards those are closed again that were.

function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const folds = [];
  for (let at = target?.closest("details"); at; at = at.parentElement.closest("details")) folds.push(at);
  folds.forEach((each) => { each.open = true; });
  if (folds.length) target.scrollIntoView();
}

// What is wider than its place says so, as far as it is not moved to its end.

function scrolling(area) {
  const hint = area.nextElementSibling?.matches(".beyond") ? area.nextElementSibling : null;
  const look = () => {
    const isWider = area.scrollWidth > area.clientWidth + 1;
    area.classList.toggle("goes-on", isWider && area.scrollLeft + area.clientWidth < area.scrollWidth - 1);
    if (hint) hint.hidden = !isWider;
  };
  area.addEventListener("scroll", look, { passive: true });
  const watcher = new ResizeObserver(look);
  watcher.observe(area);
  if (area.firstElementChild) watcher.observe(area.firstElementChild);
}

let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  opened.forEach((each) => { each.open = true; });
});
addEventListener("afterprint", () => opened.forEach((each) => { each.open = false; }));
addEventListener("hashchange", openTarget);

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll(".scroll").forEach(scrolling);
const numbers = JSON.parse(document.getElementById("numbers").textContent);
document.querySelectorAll(".chart").forEach((figure) => chart(figure, numbers));
openTarget();
