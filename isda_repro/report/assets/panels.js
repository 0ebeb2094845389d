// Filters above the curves, and the panels that match them.
"use strict";
const PANELS = 12; // number of panels drawn at first; a button shows as many more, and paper shows all

// Add derived data once: indices by run id, the tables and cells of each run, and the lines by key.
function prepare(data) {
  data.numbers = new Map(data.runs.map((run, number) => [run.id, number]));
  data.tablesOf = data.runs.map(() => new Set());
  data.cellsOf = data.runs.map(() => []);
  data.lines = new Map();
  for (const [key, cell] of Object.entries(data.cells))
    for (const number of cell.runs) {
      data.tablesOf[number].add(cell.table);
      data.cellsOf[number].push(key);
    }
  data.panels.forEach((panel, index) => giveLooks(data, panel, index));
}

// Give each line of a panel a look: Cross-entropy and ISDA the same in every panel, other lines a free one.
function giveLooks(data, panel, index) {
  const fixed = { ce: 0, isda: 1 };
  const taken = new Set();
  for (const line of panel.lines) {
    const wish = fixed[line.method];
    line.look =
      wish !== undefined && !taken.has(wish)
        ? wish
        : [...Array(panel.lines.length + 2).keys()].find((look) => look > 1 && !taken.has(look));
    taken.add(line.look);
    line.key = `curve-${index}-${panel.lines.indexOf(line)}`;
    data.lines.set(line.key, { ...line, name: `${panel.title}, ${panel.facts}: ${line.label}` });
  }
}

function choicesOf(form) {
  const chosen = {};
  for (const field of form.querySelectorAll("[data-filter]"))
    chosen[field.dataset.filter] = [...field.querySelectorAll("input:checked")].map((input) => input.value);
  return chosen;
}

// Return [panel, matching lines] for each panel with matching lines, of runs that have the curve. A group without a
// choice matches everything.
function passing(data, chosen, curve) {
  const has = (name, value) => !chosen[name].length || chosen[name].includes(value);
  const inTable = (line) =>
    !chosen.table.length || line.runs.some((run) => chosen.table.some((name) => data.tablesOf[run].has(name)));
  const hasCurve = (line) => line.runs.some((run) => data.runs[run].curves[curve]);
  return data.panels
    .filter((panel) => ["model", "dataset", "augmentation"].every((name) => has(name, panel[name])))
    .map((panel) => [panel, panel.lines.filter((line) => has("method", line.method) && inTable(line) && hasCurve(line))])
    .filter(([, lines]) => lines.length);
}

function fillFilters(form, data) {
  const values = { table: [...new Set(data.tablesOf.flatMap((names) => [...names]))] };
  for (const name of ["model", "dataset", "augmentation"])
    values[name] = [...new Set(data.panels.map((panel) => panel[name]))].sort();
  values.method = [...new Set(data.panels.flatMap((panel) => panel.lines.map((line) => line.method)))].sort();
  for (const field of form.querySelectorAll("[data-filter]")) {
    const listed = values[field.dataset.filter];
    for (const value of listed)
      field.append(
        element("label", {}, element("input", { type: "checkbox", name: field.dataset.filter, value }), value),
      );
    field.hidden = listed.length < 2;
  }
  for (const option of [...form.elements.curve.options])
    if (!data.runs.some((run) => run.curves[option.value])) option.remove();
  form.hidden = false;
}

function optionsOf(form) {
  return { curve: form.elements.curve.value, axis: form.elements.axis.value, seeds: form.elements.seeds.value };
}

function makePanel(data, panel, lines, options) {
  const hidden = new Set();
  const plot = element("div", {
    class: "plot",
    role: "img",
    "aria-label": `Curves of ${panel.title}; their values in the last epoch follow`,
  });
  const redraw = (now = options) =>
    draw(
      plot,
      data,
      panel,
      lines.filter((line) => !hidden.has(line)),
      now,
    );
  const legend = element("ul", { class: "legend" }, element("li", { class: "heading" }, "last epoch"));
  for (const line of lines) {
    const button = element("button", { type: "button", "aria-pressed": "true" }, swatch(line.look), line.label);
    button.addEventListener("click", () => {
      hidden.has(line) ? hidden.delete(line) : hidden.add(line);
      button.setAttribute("aria-pressed", String(!hidden.has(line)));
      redraw();
    });
    legend.append(element("li", {}, button, valueLink(data, line, options.curve)));
  }
  const heading = element("h3", {}, panel.title);
  return {
    node: element("article", { class: "panel" }, heading, element("p", { class: "facts" }, panel.facts), plot, legend),
    redraw,
    plot,
  };
}

// A line's last value as a link to its run, or to the list of its runs.
function valueLink(data, line, curve) {
  const target = line.runs.length === 1 ? data.runs[line.runs[0]].id : line.key;
  return element("a", { class: "value", href: `#${encodeURIComponent(target)}` }, lastValue(data, line, curve));
}

// The value of the last epoch as text: mean ± sample standard deviation over seeds.
function lastValue(data, line, curve) {
  const values = line.runs
    .map((number) => data.runs[number].curves[curve]?.at(-1))
    .filter((value) => value !== undefined);
  if (!values.length) return "not recorded";
  const digits = isError(curve) ? 2 : 3;
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  if (values.length === 1) return `${mean.toFixed(digits)} (n = 1)`;
  const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length - 1);
  return `${mean.toFixed(digits)} ± ${Math.sqrt(variance).toFixed(digits)} (n = ${values.length})`;
}

function swatch(look) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 30 10");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", `swatch line-${look % COLOURS}`);
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", "M0 5H30");
  const dash = DASHES[look % DASHES.length];
  if (dash !== "solid") path.setAttribute("stroke-dasharray", dash.replaceAll("px", ""));
  svg.append(path, mark(look));
  return svg;
}

// A small copy of the line's marker in plotly.
function mark(look) {
  const shapes = [
    "M15 2a3 3 0 1 0 .01 0z",
    "M12 2h6v6h-6z",
    "M15 1.5l3.4 6h-6.8z",
    "M15 1.2l3.8 3.8l-3.8 3.8l-3.8-3.8z",
    "M15 8.5l3.4-6h-6.8z",
    "M14 2h2v2h2v2h-2v2h-2v-2h-2v-2h2z",
    "M12 2l6 6M18 2l-6 6",
  ];
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", shapes[look % shapes.length]);
  path.setAttribute("class", "mark");
  return path;
}
