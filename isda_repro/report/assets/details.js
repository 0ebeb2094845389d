// The details dialog: it shows the run, cell or curve that the URL's fragment names. Other fragments scroll.
"use strict";

function nameOf(hash) {
  return decodeURIComponent(hash.slice(1));
}

function isDetail(data, hash) {
  const name = nameOf(hash);
  return data.numbers.has(name) || name in data.cells || data.lines.has(name);
}

function follow(data, dialog) {
  const name = nameOf(location.hash);
  const title = dialog.querySelector("h2");
  const body = dialog.querySelector(".body");
  const list = data.cells[name] ?? data.lines.get(name);
  if (data.numbers.has(name)) {
    title.textContent = name;
    body.replaceChildren(...runDetails(data, data.runs[data.numbers.get(name)]));
  } else if (list) {
    title.textContent = list.name;
    body.replaceChildren(...listDetails(data, list));
  } else {
    if (dialog.open) dialog.close();
    document.getElementById(name)?.closest("details")?.setAttribute("open", "");
    return;
  }
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  title.focus();
}

function section(title, ...children) {
  return element("section", {}, element("h3", {}, title), ...children);
}

function pairs(entries) {
  const rows = entries.map(([key, value]) =>
    element("tr", {}, element("th", { scope: "row" }, key), element("td", {}, String(value))),
  );
  return element("table", { class: "pairs" }, element("tbody", {}, ...rows));
}

// Flatten a nested object to [dotted key, value] pairs.
function dotted(node, prefix = "") {
  if (Array.isArray(node))
    return [[prefix, node.map((one) => (typeof one === "object" ? JSON.stringify(one) : one)).join(", ")]];
  if (node === null || typeof node !== "object") return [[prefix, node]];
  return Object.entries(node).flatMap(([key, value]) => dotted(value, prefix ? `${prefix}.${key}` : key));
}

function command(text) {
  const button = element("button", { type: "button", class: "copy" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(button.previousElementSibling); // the page may not write to the clipboard
    }
  });
  return element("div", { class: "command" }, element("code", { tabindex: "0" }, text), button);
}

function runDetails(data, run) {
  const sizes = Object.entries(data.sizes[run.sizes]).map(([name, value]) => [
    name.replaceAll("_", " "),
    grouped.format(value),
  ]);
  const timing = Object.entries(run.timing).map(([name, value]) => [
    name.replaceAll("_", " ") + (TIMED.includes(name) ? ", seconds" : ""),
    value,
  ]);
  const stretches = data.segments[run.segments].map((segment, index, all) =>
    section(
      all.length > 1 ? `Hardware and precision, stretch ${index + 1} of ${all.length}` : "Hardware and precision",
      pairs(dotted(segment)),
    ),
  );
  return [
    section("Result", ...runCurves(data, run), pairs(resultOf(data, run))),
    section("To repeat it", repeat(data, run)),
    section("Where it counts", whereItCounts(data, run)),
    section("Size", pairs(sizes)),
    section("Settings", pairs([["seed", run.seed], ...dotted(data.settings[run.settings])])),
    section("Surroundings", pairs(dotted(data.environments[run.environment]))),
    ...stretches,
    section("Time and memory", pairs(timing)),
    section("File", element("p", {}, element("code", {}, run.file))),
  ];
}

const TIMED = ["train", "data_wait", "criterion", "evaluation", "saving"];

function resultOf(data, run) {
  const errors = Object.entries(run.errors).map(([name, value]) => [
    `${run.on} error, ${data.metrics[name]}`,
    `${value.toFixed(2)}%`,
  ]);
  return [...errors, ["hours", hoursOf(run).toPrecision(2)]];
}

// The command that repeats a run: its cell's command, or train.py with the configuration in the run's folder.
function repeat(data, run) {
  const cell = data.cellsOf[run.number].map((key) => data.cells[key]).find((one) => one.command);
  if (cell) return command(`${cell.command} seed=${run.seed}`);
  if (run.file.endsWith("/result.json"))
    return command(`python train.py ${run.file.replace(/result\.json$/, "config.yaml")}`);
  return element("p", {}, "It is of no table as specified now, and only its result is kept; its settings are below.");
}

function whereItCounts(data, run) {
  const links = data.cellsOf[run.number].map((key) => {
    const cell = data.cells[key];
    return element("li", {}, element("a", { href: `#${encodeURIComponent(key)}` }, `${cell.table}: ${cell.name}`));
  });
  return links.length ? element("ul", {}, ...links) : element("p", {}, "In no table.");
}

// The test and training error of one run, drawn as a panel with two lines.
function runCurves(data, run) {
  const panel = data.panels.find((one) => one.lines.some((line) => line.runs.includes(run.number)));
  const named = [
    [`${run.on} error`, run.curves.test_error, 1],
    ["training error", run.curves.train_error, 0],
  ];
  const drawn = named.filter(([, values]) => values);
  const each = drawn.map(([, values]) => ({ ...run, epochs: 0, curves: { test_error: values } }));
  const lines = drawn.map(([label, , look], index) => ({ label, look, key: null, runs: [index] }));
  const plot = element("div", { class: "plot", role: "img", "aria-label": "Curves of the errors" });
  draw(plot, { runs: each, epochs: [data.epochs[run.epochs]] }, panel, lines, {
    curve: "test_error",
    axis: "log",
    seeds: "mean",
    title: "error (%)",
  });
  return [
    plot,
    element("ul", { class: "legend flat" }, ...lines.map((line) => element("li", {}, swatch(line.look), line.label))),
  ];
}

// The list of runs of a cell or curve, and the diverged and missing seeds of a cell.
function listDetails(data, list) {
  const runs = list.runs.map((number) => data.runs[number]);
  const rows = runs.map((run) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, String(run.seed)),
      element("td", { class: "number" }, run.errors.test_error_final.toFixed(2)),
      element("td", { class: "number" }, run.errors.test_error_last10.toFixed(2)),
      element("td", {}, element("a", { href: `#${encodeURIComponent(run.id)}` }, run.id)),
    ),
  );
  const head = element(
    "thead",
    {},
    element("tr", {}, ...["Seed", "Last epoch", "Last 10", "Run"].map((text) => element("th", { scope: "col" }, text))),
  );
  const parts = [];
  if (list.table) {
    const link = element("a", { href: `#table-${list.table}` }, `table=${list.table}`);
    parts.push(element("p", {}, link, `: ${data.tables[list.table]}`));
  }
  if (rows.length) {
    const table = element("table", {}, head, element("tbody", {}, ...rows));
    parts.push(section("Finished", element("div", { class: "scroll", tabindex: "0" }, table)));
  }
  if (list.diverged?.length) {
    parts.push(section("Diverged", element("ul", {}, ...list.diverged.map((text) => element("li", {}, text)))));
  }
  if (list.missing?.length) {
    const commands = list.missing.map((seed) => command(`${list.command} seed=${seed}`));
    const title = `Not run: seed${list.missing.length > 1 ? "s" : ""} ${list.missing.join(", ")}`;
    parts.push(section(title, ...commands));
  }
  return parts;
}
