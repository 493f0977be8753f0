"use strict";
const all = (selector, from = document) => [...from.querySelectorAll(selector)];
const root = document.documentElement;
const form = document.getElementById("filters");
const tip = document.getElementById("tip");
const search = document.getElementById("search");
const mainLengths = JSON.parse(document.body.dataset.mainLengths);
const state = { data: "", scoring: "", n: "", sort: "score-descending", kinds: "" };
const pinned = new Set();
const places = new Map(all("table.sortable tbody tr").map((row, i) => [row, i]));

// What is chosen lives in the address, so that a view can be linked to.
function readAddress() {
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    if (name === "sort" || name === "kinds") state[name] = value;
    const input = all(`input[name]`, form).find((i) => i.name === name && i.value === value);
    if (input) input.checked = true;
  }
  readForm();
}

function readForm() {
  for (const input of all("input:checked", form)) state[input.name] = input.value;
}

function writeAddress() {
  const chosen = Object.entries(state).filter(([, value]) => value);
  history.replaceState(null, "", "#" + new URLSearchParams(chosen));
}

function show() {
  const plotted = state.n === "all" ? String(mainLengths[state.data]) : state.n;
  for (const element of all("[data-data]")) {
    const { data, scoring, n, plotN } = element.dataset;
    element.hidden =
      data !== state.data ||
      (scoring !== undefined && scoring !== state.scoring) ||
      (n !== undefined && state.n !== "all" && n !== state.n) ||
      (plotN !== undefined && plotN !== plotted) ||
      !matches(element);
  }
  for (const row of all("tr[data-n]")) row.hidden = state.n !== "all" && row.dataset.n !== state.n;
  for (const figure of all("figure")) {
    const empty = all("[data-data]", figure).every((plot) => plot.hidden);
    figure.querySelector(".nothing").hidden = !empty;
    figure.querySelector(".chosen").textContent = `N = ${Number(plotted).toLocaleString("en")}.`;
  }
  if (search) {
    const hits = all(".edit").filter((edit) => !edit.hidden).length;
    document.getElementById("hits").textContent = `${hits} edit${hits === 1 ? "" : "s"}`;
  }
  sortTables();
  writeAddress();
}

function matches(element) {
  if (!search || !element.classList.contains("edit")) return true;
  return element.textContent.toLowerCase().includes(search.value.trim().toLowerCase());
}

// Rows without a value, such as those of cells that were not run, stay at the end either way.
function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  return sign * (a < b ? -1 : a > b ? 1 : 0);
}

function sortTables() {
  for (const table of all("table.sortable")) {
    const [key, direction] = state[table.dataset.state].split("-");
    const sign = direction === "descending" ? -1 : 1;
    const headers = all("thead th", table);
    const column = headers.findIndex((header) => header.dataset.key === key);
    if (column < 0) continue;
    headers.forEach((header, i) => header.setAttribute("aria-sort", i === column ? direction : "none"));
    const value = (row) => JSON.parse(row.dataset.values)[column];
    const rows = all("tbody tr", table).map((row) => [value(row), row]);
    rows.sort(([a, rowA], [b, rowB]) => compare(a, b, sign) || places.get(rowA) - places.get(rowB));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }
}

function highlight(method) {
  const kept = new Set(pinned);
  if (method) kept.add(method);
  for (const mark of all(".mark, .whiskers g"))
    mark.classList.toggle("dim", kept.size > 0 && !kept.has(mark.dataset.method));
}

function showTip(target, x, y) {
  tip.textContent = target.dataset.values ? curveTip(target, x) : target.dataset.tip;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = Math.min(x + 14, innerWidth - box.width - 6);
  const top = y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18;
  tip.style.left = `${Math.max(6, left)}px`;
  tip.style.top = `${Math.max(6, top)}px`;
}

// A curve says what it is worth at the place pointed at.
function curveTip(mark, x) {
  const at = new DOMPoint(x, 0).matrixTransform(mark.getScreenCTM().inverse()).x;
  const places = mark.dataset.x.split(" ").map(Number);
  const distances = places.map((place) => Math.abs(place - at));
  const nearest = distances.indexOf(Math.min(...distances));
  return `${mark.dataset.method}\n${mark.dataset.values.split("|")[nearest]}`;
}

function showTipAtFocus() {
  tip.hidden = true;
  const mark = document.querySelector(".mark:focus-visible");
  if (!mark) return;
  const box = mark.querySelector(".marker").getBoundingClientRect();
  showTip(mark, box.right, box.bottom);
}

document.addEventListener("pointermove", (event) => {
  const target = event.target.closest("[data-tip]");
  if (target) showTip(target, event.clientX, event.clientY);
  else tip.hidden = true;
  highlight(event.target.closest("[data-method]")?.dataset.method);
});
document.addEventListener("focusin", (event) => {
  highlight(event.target.closest("[data-method]")?.dataset.method);
  showTipAtFocus();
});
document.addEventListener("focusout", () => { tip.hidden = true; highlight(); });
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") tip.hidden = true;
  const mark = event.target.closest(".mark");
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!mark || !step) return;
  event.preventDefault();
  const marks = all(".mark", mark.closest("svg"));
  marks[(marks.indexOf(mark) + step + marks.length) % marks.length].focus();
});
// A mark that gets the focus may be scrolled into view.
document.addEventListener("scroll", showTipAtFocus, true);

document.addEventListener("click", (event) => {
  const header = event.target.closest("table.sortable thead th");
  const pick = event.target.closest(".pick");
  if (header) {
    const first = header.dataset.best === "high" ? "descending" : "ascending";
    const other = first === "descending" ? "ascending" : "descending";
    const direction = header.ariaSort === first ? other : first;
    state[header.closest("table").dataset.state] = `${header.dataset.key}-${direction}`;
    sortTables();
    writeAddress();
  }
  if (pick) {
    const method = pick.dataset.method;
    if (!pinned.delete(method)) pinned.add(method);
    for (const button of all(".pick"))
      button.setAttribute("aria-pressed", String(pinned.has(button.dataset.method)));
    highlight();
  }
});

form.addEventListener("change", () => { readForm(); show(); });
form.addEventListener("submit", (event) => event.preventDefault());
search?.addEventListener("input", show);
addEventListener("hashchange", () => { readAddress(); show(); });

// Without storage, as in some browsers for local files, the choice lasts as long as the page.
function remembered(theme) {
  try {
    if (theme) localStorage.setItem("theme", theme);
    return localStorage.getItem("theme");
  } catch {
    return null;
  }
}

document.getElementById("theme").addEventListener("click", () => {
  const dark = (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  root.dataset.theme = dark ? "light" : "dark";
  remembered(root.dataset.theme);
});
const theme = remembered();
if (theme === "light" || theme === "dark") root.dataset.theme = theme;

// A plot is one stop of the Tab key; the arrow keys go from mark to mark.
for (const plot of all("svg.plot")) plot.querySelector(".mark").setAttribute("tabindex", "0");

readAddress();
show();
