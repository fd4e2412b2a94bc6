"use strict";
(() => {
  // Sorting: by `data-order` where a cell has it, otherwise by its text; what was not measured stays last.
  const order = (row, place) => {
    const cell = row.cells[place];
    const value = cell.dataset.order;
    return value === undefined ? cell.textContent.trim() : value === "" ? null : Number(value);
  };
  const compare = (one, other) =>
    typeof one === "number" ? one - other : String(one).localeCompare(String(other), "en", { numeric: true });
  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const table = head.closest("table");
      const ascending = head.hasAttribute("aria-sort")
        ? head.getAttribute("aria-sort") === "descending"
        : !head.classList.contains("number");
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [order(row, head.cellIndex), row]);
      rows.sort(([one], [other]) => {
        if (one === null || other === null) return (one === null) - (other === null);
        return ascending ? compare(one, other) : compare(other, one);
      });
      body.append(...rows.map(([, row]) => row));
      document.getElementById("said").textContent =
        `Sorted by ${button.textContent.trim()}, ${ascending ? "ascending" : "descending"}.`;
    });
  }

  // The page follows the system; the button overrules it, and remembers where the browser lets a file remember.
  const root = document.documentElement;
  const toggle = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const show = () => {
    toggle.textContent = isDark() ? "Light page" : "Dark page";
  };
  try {
    const kept = localStorage.getItem("paft-theme");
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  } catch { /* no storage for files: the system's choice it is */ }
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("paft-theme", root.dataset.theme);
    } catch { /* as above */ }
    show();
  });
  system.addEventListener("change", show);
  toggle.hidden = false;
  show();
})();
