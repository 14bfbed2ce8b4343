// Sorting by the heads of a table: numbers by data-value, text by data-key or as shown. Largest number first, then smallest
// first, then the original order. What has no value stays last. Rows of <tfoot> stay where they are.
"use strict";
// What a link leads to is unfolded, and so is everything for the printer.
const unfold = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  if (target && target.closest("#more")) target.scrollIntoView();
};
addEventListener("hashchange", unfold);
unfold();
let folded = [];
addEventListener("beforeprint", () => {
  folded = Array.from(document.querySelectorAll("#more > details:not([open])"));
  for (const part of folded) part.open = true;
});
addEventListener("afterprint", () => {
  for (const part of folded) part.open = false;
});
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const heads = Array.from(table.tHead.rows[table.tHead.rows.length - 1].cells);
  heads.forEach((head, column) => {
    const cells = rows.map((row) => row.cells[column]);
    const numbers = cells.some((cell) => cell.dataset.value !== undefined);
    const key = (row) => {
      const { value, key: text } = row.cells[column].dataset;
      if (numbers) return value === undefined ? null : Number(value);
      return (text ?? row.cells[column].textContent).trim() || null;
    };
    const compare = numbers ? (a, b) => a - b : (a, b) => a.localeCompare(b, "en", { numeric: true });
    const orders = numbers ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"];
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => {
      const order = orders[(orders.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", order);
      const known = rows.filter((row) => key(row) !== null);
      const sign = order === "descending" ? -1 : 1;
      if (order !== "none") known.sort((a, b) => sign * compare(key(a), key(b)));
      const sorted = order === "none" ? rows : [...known, ...rows.filter((row) => key(row) === null)];
      body.append(...sorted);
    });
    head.append(button);
    head.setAttribute("aria-sort", "none");
  });
}
