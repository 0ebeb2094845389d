// Tables that are sorted by a click on a heading: the lines of one table row, a <tbody>, stay together.
"use strict";

function makeSortable(table) {
  const bodies = [...table.tBodies];
  const original = new Map(bodies.map((body, index) => [body, index]));
  columnsOf(table).forEach(({ heading, column }) => {
    if (cellAt(bodies[0]?.rows[0], column)?.classList.contains("kind")) return; // the same words in every row
    const button = element("button", { type: "button", class: "sort" });
    if (!heading.textContent.trim()) button.setAttribute("aria-label", "row");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => sortBy(table, heading, column, original));
  });
}

// The headings of single columns, each with the number of its column: those that reach down to the last header line.
function columnsOf(table) {
  const rows = [...(table.tHead?.rows ?? [])];
  const taken = rows.map(() => []);
  const found = [];
  rows.forEach((row, index) => {
    let column = 0;
    for (const heading of row.cells) {
      while (taken[index][column]) column += 1;
      const bottom = index + heading.rowSpan;
      for (let below = index; below < Math.min(bottom, rows.length); below += 1)
        for (let across = 0; across < heading.colSpan; across += 1) taken[below][column + across] = true;
      if (bottom >= rows.length && heading.colSpan === 1) found.push({ heading, column });
      column += heading.colSpan;
    }
  });
  return found;
}

// Up, down, then as it was: null.
function nextOrder(table, heading) {
  const before = heading.getAttribute("aria-sort");
  const order = before === "ascending" ? "descending" : before === "descending" ? null : "ascending";
  table.querySelectorAll("[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
  if (order) heading.setAttribute("aria-sort", order);
  return order;
}

function sortBy(table, heading, column, original) {
  const order = nextOrder(table, heading);
  const bodies = [...table.tBodies];
  const keys = new Map(bodies.map((body) => [body, sortKey(body.rows[0], column)]));
  bodies.sort((a, b) => {
    const place = (original.get(a) ?? 0) - (original.get(b) ?? 0);
    return order ? compared(keys.get(a), keys.get(b), order === "descending" ? -1 : 1) || place : place;
  });
  table.append(...bodies);
}

function cellAt(row, column) {
  let at = 0;
  return [...(row?.cells ?? [])].find((cell) => column < (at += cell.colSpan));
}

// What a cell is sorted by: its number where it has one, its words otherwise; null where it is empty.
function sortKey(row, column) {
  const cell = cellAt(row, column);
  if (cell?.dataset.value !== undefined) return Number(cell.dataset.value);
  return cell?.textContent.trim() || null;
}

// Empty cells come last, whichever way.
function compared(a, b, direction) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return direction * (a - b);
  return direction * String(a).localeCompare(String(b), "en", { numeric: true });
}
