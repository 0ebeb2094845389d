// Sorting of tables by a click on a heading. The lines of one table row are a <tbody> and stay together.
"use strict";

function makeSortable(table) {
  const bodies = [...table.tBodies];
  const original = new Map(bodies.map((body, index) => [body, index]));
  columnsOf(table).forEach(({ heading, column }) => {
    if (cellAt(bodies[0]?.rows[0], column)?.classList.contains("kind")) return; // the same labels in every row
    const button = element("button", { type: "button", class: "sort" });
    if (!heading.textContent.trim()) button.setAttribute("aria-label", "row");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => sortBy(table, heading, column, original));
  });
}

// Return the headings of single columns with their column number: those that reach the last header line.
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

// Cycle through ascending, descending and null, which is the original order.
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

// The value by which a cell is sorted: its number if it has one, otherwise its text; null if it is empty.
function sortKey(row, column) {
  const cell = cellAt(row, column);
  if (cell?.dataset.value !== undefined) return Number(cell.dataset.value);
  return cell?.textContent.trim() || null;
}

// Compare two sort keys. Empty cells come last in either direction.
function compared(a, b, direction) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return direction * (a - b);
  return direction * String(a).localeCompare(String(b), "en", { numeric: true });
}
