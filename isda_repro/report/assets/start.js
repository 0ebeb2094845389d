// Set-up when the page has been loaded.
"use strict";

function startTheme(button, curves) {
  let theme = storedTheme();
  const show = () => {
    button.querySelector(".which").textContent = theme;
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = nextTheme(theme);
    setTheme(theme);
    try {
      localStorage.setItem("theme", theme);
    } catch {
      // storage is blocked, so the choice lasts for this visit only
    }
    show();
    curves.redraw();
  });
  SYSTEM.addEventListener("change", () => {
    setTheme(theme);
    curves.redraw();
  });
  addEventListener("beforeprint", () => {
    setTheme("light"); // for white paper
    curves.print(true);
  });
  addEventListener("afterprint", () => {
    setTheme(theme);
    curves.print(false);
  });
  show();
}

function startTables() {
  document.querySelectorAll("details.table table, table[data-sortable]:not(.runs)").forEach(makeSortable);
  document.querySelectorAll("details.table table").forEach(boxed);
}

// Wrap a table in a scrollable box that can be focused by keyboard, for tables wider than the screen.
function boxed(table) {
  if (table.parentElement.classList.contains("scroll")) return;
  const box = element("div", {
    class: "scroll",
    tabindex: "0",
    role: "region",
    "aria-label": table.caption?.textContent ?? "Table",
  });
  table.replaceWith(box);
  box.append(table);
}

// Turn our numbers in the tables into links to their runs.
function linkCells(data) {
  for (const place of document.querySelectorAll("details.table")) {
    const reduced = [...place.querySelectorAll("section.reduced")];
    for (const cell of place.querySelectorAll("[data-cell]")) {
      const part = reduced.indexOf(cell.closest("section.reduced"));
      const key = [place.dataset.table, ...(part < 0 ? [] : [`reduced-${part}`]), cell.dataset.cell].join("/");
      if (!data.cells[key]) continue;
      const link = element("a", { href: `#${encodeURIComponent(key)}`, class: "cell" });
      link.append(...cell.childNodes);
      cell.append(link);
    }
  }
}

const ON_PAPER = { width: 310, height: 240 }; // of a plot in pixels: two are abreast; layouts on paper are not known before

// Return functions that redraw the panels, and that show all panels and runs (for paper) or as many as before.
function startCurves(data, place) {
  const form = place.querySelector("form.filters");
  const more = place.querySelector(".more");
  const rows = document.querySelector("table.runs");
  const [listRuns, showRuns] = makeRunList(rows, document.querySelector(".more-runs"), data);
  let found = [];
  let panels = [];
  let count = PANELS;
  const add = (upTo) => {
    const options = optionsOf(form);
    const added = found.slice(panels.length, upTo).map(([panel, lines]) => makePanel(data, panel, lines, options));
    panels = [...panels, ...added];
    place.querySelector(".panels").append(...added.map((panel) => panel.node));
  };
  const show = async () => {
    found = passing(data, choicesOf(form), optionsOf(form).curve);
    panels = [];
    place.querySelector(".panels").replaceChildren();
    add(count);
    const runs = found.flatMap(([, lines]) => lines.flatMap((line) => line.runs));
    place.querySelector(".found").textContent =
      `${plural(runs.length, "run")} in ${plural(found.length, "panel")}${found.length ? "" : "; choose less narrowly"}`;
    more.hidden = found.length <= count;
    more.textContent = `Show more of ${plural(found.length, "panel")}`;
    listRuns(runs.sort((a, b) => a - b));
    const drawn = panels;
    for (const panel of drawn) if (drawn === panels) await panel.redraw(); // one at a time, to stay responsive
  };
  form.addEventListener("change", () => {
    count = PANELS;
    show();
  });
  form.addEventListener("reset", () => setTimeout(show));
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    count += PANELS;
    show();
  });
  fillFilters(form, data);
  show();
  const redraw = (options) => panels.forEach((panel) => panel.redraw(options));
  const print = (isBefore) => {
    if (isBefore) add();
    else panels.splice(count).forEach((panel) => panel.node.remove());
    showRuns(isBefore);
    redraw({ ...optionsOf(form), ...(isBefore ? ON_PAPER : {}) });
    if (!isBefore) dispatchEvent(new Event("resize")); // plots fill their panels again
  };
  return { redraw, print };
}

function startDetails(data) {
  const dialog = document.querySelector("dialog.details");
  let before = null;
  const go = () => {
    if (!dialog.open) before = document.activeElement;
    follow(data, dialog);
  };
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => {
    if (isDetail(data, location.hash)) history.replaceState(null, "", location.pathname + location.search);
    before?.focus?.();
  });
  addEventListener("hashchange", go);
  if (location.hash) go();
}

async function start() {
  const curves = { redraw() {}, print() {} }; // until there are curves
  startTables();
  startTheme(document.querySelector("button.theme"), curves);
  if (!("DecompressionStream" in window)) {
    document.querySelectorAll(".found").forEach((place) => {
      place.textContent = "This browser is too old to unpack the runs: curves and details need one of 2023 or later.";
    });
    return;
  }
  const data = JSON.parse(await unpacked("data"));
  data.runs.forEach((run, number) => {
    run.number = number;
  });
  prepare(data);
  linkCells(data);
  if (data.runs.length) Object.assign(curves, startCurves(data, document.getElementById("curves")));
  startDetails(data);
  document.documentElement.dataset.ready = "";
}

start();
