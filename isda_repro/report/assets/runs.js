// The list of runs below the curves. The same filters apply; the data is sorted, not the rows, as not all are drawn.
"use strict";
const ROWS = 50; // number of rows at first; a button shows ten times as many more, and paper shows all

const RUN_COLUMNS = [
  (run) => run.id,
  (run) => run.errors.test_error_final,
  (run) => run.errors.test_error_last10,
  (run) => run.errors.test_error_best,
  (run) => run.on,
  (run, data) => data.sizes[run.sizes].epochs,
  (run) => hoursOf(run),
];

function hoursOf(run) {
  const seconds = ["train", "evaluation", "saving"].reduce((sum, name) => sum + (run.timing[name] ?? 0), 0);
  return seconds / 3600;
}

// Return functions that list runs, from the first rows on, and that list all rows of the same runs or as many as before.
function makeRunList(table, more, data) {
  const list = { numbers: [], shown: ROWS, column: null, direction: 1 };
  const show = (isWhole = false) => {
    const key = list.column === null ? null : RUN_COLUMNS[list.column];
    const sorted = key
      ? [...list.numbers].sort(
          (a, b) => compared(key(data.runs[a], data), key(data.runs[b], data), list.direction) || a - b,
        )
      : list.numbers;
    table.querySelectorAll("tbody").forEach((body) => body.remove());
    table.append(element("tbody", {}, ...sorted.slice(0, isWhole ? undefined : list.shown).map((number) => runRow(data.runs[number], data))));
    more.hidden = sorted.length <= list.shown;
    more.textContent = `Show more of ${plural(sorted.length, "run")}`;
  };
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = element("button", { type: "button", class: "sort" }, heading.textContent);
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const order = nextOrder(table, heading);
      list.column = order ? column : null;
      list.direction = order === "descending" ? -1 : 1;
      show();
    });
  });
  more.addEventListener("click", () => {
    list.shown += 10 * ROWS;
    show();
  });
  const set = (numbers) => {
    list.numbers = numbers;
    list.shown = ROWS;
    show();
  };
  return [set, show];
}

function runRow(run, data) {
  const number = (text) => element("td", { class: "number" }, text);
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, element("a", { href: `#${encodeURIComponent(run.id)}` }, run.id)),
    number(run.errors.test_error_final.toFixed(2)),
    number(run.errors.test_error_last10.toFixed(2)),
    number(run.errors.test_error_best.toFixed(2)),
    element("td", {}, run.on),
    number(grouped.format(data.sizes[run.sizes].epochs)),
    number(hoursOf(run).toPrecision(2)),
  );
}
