"use strict";
// The page's only script: tables that can be sorted, the search in the full table, and details that are open in print.
document.documentElement.classList.add("scripted");

const SHOWN = 200; // most rows of the full table shown at once

// The order of `items` by `key`: numbers as numbers, texts as texts, what is missing last; equal items keep their order.
function sorted(items, key, direction) {
  if (direction === "none") return items;
  const sign = direction === "ascending" ? 1 : -1;
  return items.map((item) => [key(item), item]).sort(([first], [second]) => {
    const missing = (first === null) - (second === null);
    if (missing || first === null) return missing;
    if (typeof first === "number" && typeof second === "number") return sign * (first - second);
    return sign * String(first).localeCompare(String(second), undefined, { numeric: true });
  }).map(([, item]) => item);
}

// Puts a button into every head of a column; `show(column, direction)` is called when one is pressed.
function addButtons(heads, show) {
  const next = { none: "ascending", ascending: "descending", descending: "none" };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `Sort by ${head.textContent}`);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const direction = next[head.getAttribute("aria-sort")];
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", direction);
      show(column, direction);
    });
  });
}

function cellValue(cell) {
  if (cell.dataset.sort === undefined) return cell.textContent;
  return cell.dataset.sort === "" ? null : Number(cell.dataset.sort);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.classList.toggle("number", rows.some((row) => row.cells[column].dataset.sort)));
  addButtons(heads, (column, direction) => body.append(...sorted(rows, (row) => cellValue(row.cells[column]), direction)));
}

// The full table. It is read when it is opened for the first time.
function openResults(results) {
  const table = results.querySelector("table");
  const columns = Object.entries(JSON.parse(document.getElementById("results-data").textContent));
  const value = columns.map(([, { texts, places, numbers }]) => (row) => (numbers ? numbers[row] : texts[places[row]]));
  const [, first] = columns[0];
  const all = [...(first.places || first.numbers).keys()];
  const words = all.map((row) => value.filter((_, i) => !columns[i][1].numbers).map((get) => get(row)).join("\n").toLowerCase());
  let order = [0, "none"];

  function show() {
    const asked = results.querySelector("input").value.toLowerCase().split(/\s+/);
    const found = sorted(all.filter((row) => asked.every((word) => words[row].includes(word))), value[order[0]], order[1]);
    const more = found.length > SHOWN ? `, the first ${SHOWN} are shown` : "";
    results.querySelector("[role=status]").textContent = `${found.length} of ${all.length} rows${more}`;
    table.tBodies[0].replaceChildren(...found.slice(0, SHOWN).map((row) => {
      const line = document.createElement("tr");
      value.forEach((get, i) => {
        const cell = line.insertCell();
        cell.textContent = get(row) ?? "";
        cell.classList.toggle("number", Boolean(columns[i][1].numbers));
      });
      return line;
    }));
  }

  const line = table.tHead.insertRow();
  const heads = columns.map(([name, { numbers }]) => {
    const head = document.createElement("th");
    head.scope = "col";
    head.textContent = name;
    head.classList.toggle("number", Boolean(numbers));
    line.append(head);
    return head;
  });
  addButtons(heads, (...chosen) => { order = chosen; show(); });
  results.querySelector("input").addEventListener("input", show);
  show();
}

const results = document.getElementById("results");
results.addEventListener("toggle", () => openResults(results), { once: true });

// In print every part is open, except the search.
let opened = [];
window.addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open]):not(#results)")];
  opened.forEach((each) => { each.open = true; });
});
window.addEventListener("afterprint", () => opened.forEach((each) => { each.open = false; }));
