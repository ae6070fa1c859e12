"use strict";

// A click on a column's title sorts its table, a second one the other way round. Numbers come before words, and what is
// empty last.
// Dates, versions and digests begin like numbers, but are words.
const numberIn = (text) => {
  const found = text.replaceAll(",", "").match(/^[^\d∞]*?([-+]?\d+(\.\d+)?(e[-+]?\d+)?|∞)(?![\w.:-])/i);
  return found ? (found[1] === "∞" ? Infinity : Number(found[1])) : NaN;
};
const textOf = (row, column) => row.cells[column].textContent.trim();
const isEmpty = (text) => text === "" || text === "—";

for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = button.closest("table").tBodies[0], column = head.cellIndex;
    const rows = [...body.rows];
    const isNumeric = column > 0 && rows.every((row) => isEmpty(textOf(row, column)) || !isNaN(numberIn(textOf(row, column))));
    const goesDown = head.ariaSort ? head.ariaSort === "ascending" : isNumeric;
    for (const each of head.parentNode.cells) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", goesDown ? "descending" : "ascending");
    rows.sort((one, other) => {
      const [a, b] = [textOf(one, column), textOf(other, column)];
      if (isEmpty(a) || isEmpty(b)) return isEmpty(a) - isEmpty(b);
      const order = isNumeric ? numberIn(a) - numberIn(b) : a.localeCompare(b, "en", { numeric: true });
      return goesDown ? -order : order;
    });
    body.append(...rows);
  });
}

// A button of the legend hides its row in all figures of the group.
for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const isShown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", isShown);
    for (const part of button.closest(".group").querySelectorAll(`figure [data-row="${button.dataset.row}"]`))
      part.toggleAttribute("hidden", !isShown);
  });
}

// Timelines widen inside a frame that scrolls; the middle stays where it is.
for (const button of document.querySelectorAll(".zoom button")) {
  button.addEventListener("click", () => {
    const frame = button.closest("figure").querySelector(".wide"), drawing = frame.querySelector("svg");
    const before = parseFloat(drawing.getAttribute("width")), after = Math.min(Math.max(before * button.dataset.zoom, 100), 6400);
    const middle = (frame.scrollLeft + frame.clientWidth / 2) / before;
    drawing.setAttribute("width", `${after}%`);
    frame.scrollLeft = middle * after - frame.clientWidth / 2;
  });
}
