"use strict";
// Buttons to copy tables and to save charts, sorting of tables, hints at wide tables. Without them the page reads alike.
const light = JSON.parse(document.body.dataset.light);

function button(text, place, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", () => act(made));
  place.append(made);
}

function said(on, text) {
  const before = on.textContent;
  on.textContent = text;
  setTimeout(() => { on.textContent = before; }, 1500);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // not allowed in this browser: the older way
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

function cells(table) {
  return [...table.rows].map(row => [...row.cells].map(cell => cell.textContent.trim()).join("\t")).join("\n") + "\n";
}

function save(figure) {
  const chart = [...figure.querySelectorAll("svg")].find(svg => svg.getClientRects().length).cloneNode(true);
  const [, , width, height] = chart.getAttribute("viewBox").split(" ");
  for (const [name, value] of Object.entries({ xmlns: "http://www.w3.org/2000/svg", width: `${width}pt`, height: `${height}pt` }))
    chart.setAttribute(name, value);
  chart.setAttribute("xmlns:xlink", "http://www.w3.org/1999/xlink");
  chart.removeAttribute("class");
  const text = new XMLSerializer().serializeToString(chart)
    .replace(/var\((--\w+)\)|currentColor/g, (_, name) => light[name || "ink"]);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  link.download = `${figure.dataset.name}.svg`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function sort(table, column, header) {
  const down = header.ariaSort === "ascending";
  for (const other of header.parentNode.cells) other.ariaSort = null;
  header.ariaSort = down ? "descending" : "ascending";
  const text = row => row.cells[column].textContent.trim();
  const order = (a, b) => {
    const [x, y] = [parseFloat(text(a)), parseFloat(text(b))];
    return isNaN(x) || isNaN(y) ? text(a).localeCompare(text(b), undefined, { numeric: true }) : x - y;
  };
  const rows = [...table.tBodies[0].rows].sort(order);
  table.tBodies[0].append(...(down ? rows.reverse() : rows));
}

for (const box of document.querySelectorAll(".scroll")) {
  const tools = document.createElement("div"), hint = document.createElement("span"), table = box.firstElementChild;
  tools.className = "tools";
  hint.className = "hint";
  tools.append(hint);
  button("Copy table", tools, made => copy(cells(table)).then(() => said(made, "Copied")));
  box.before(tools);
  new ResizeObserver(() => {
    const columns = box.scrollWidth > box.clientWidth + 1, rows = box.scrollHeight > box.clientHeight + 1;
    hint.textContent = `${columns ? "More columns: scroll sideways → " : ""}${rows ? "More rows: scroll down ↓" : ""}`;
  }).observe(box);
}
for (const figure of document.querySelectorAll("figure[data-name]"))
  button("Save as SVG", figure.querySelector(".tools"), () => save(figure));
for (const header of document.querySelectorAll(".sortable thead th")) {
  header.tabIndex = 0;
  header.title = "sort";
  const act = () => sort(header.closest("table"), header.cellIndex, header);
  header.addEventListener("click", act);
  header.addEventListener("keydown", event => { if (event.key === "Enter") act(); });
}
