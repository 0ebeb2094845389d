// Set-up when the page has been loaded.
"use strict";

function startTheme(button, redrawAll) {
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
    redrawAll();
  });
  SYSTEM.addEventListener("change", () => {
    setTheme(theme);
    redrawAll();
  });
  addEventListener("beforeprint", () => {
    setTheme("light"); // for white paper
    redrawAll();
  });
  addEventListener("afterprint", () => {
    setTheme(theme);
    redrawAll();
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

function startCurves(data, place) {
  const form = place.querySelector("form.filters");
  const more = place.querySelector(".more");
  const showRuns = makeRunList(document.querySelector("table.runs"), document.querySelector(".more-runs"), data);
  let panels = [];
  let count = PANELS;
  const show = async () => {
    const options = optionsOf(form);
    const found = passing(data, choicesOf(form), options.curve);
    panels = found.slice(0, count).map(([panel, lines]) => makePanel(data, panel, lines, options));
    place.querySelector(".panels").replaceChildren(...panels.map((panel) => panel.node));
    const runs = found.flatMap(([, lines]) => lines.flatMap((line) => line.runs));
    place.querySelector(".found").textContent =
      `${plural(runs.length, "run")} in ${plural(found.length, "panel")}${found.length ? "" : "; choose less narrowly"}`;
    more.hidden = found.length <= count;
    more.textContent = `Show more of ${plural(found.length, "panel")}`;
    showRuns(runs.sort((a, b) => a - b));
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
  return () => panels.forEach((panel) => panel.redraw());
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
  let redrawAll = () => {};
  startTables();
  startTheme(document.querySelector("button.theme"), () => redrawAll());
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
  if (data.runs.length) redrawAll = startCurves(data, document.getElementById("curves"));
  startDetails(data);
  document.documentElement.dataset.ready = "";
}

start();
