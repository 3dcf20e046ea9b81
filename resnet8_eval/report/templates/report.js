(() => {
  "use strict";
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Sorting: each heading becomes a button; the baseline's row stays on top.
  const value = (row, column, kind) => {
    const cell = row.cells[column];
    if (kind === "text") return cell.textContent.trim().toLowerCase();
    return "order" in cell.dataset ? Number(cell.dataset.order) : null;
  };
  const compare = (a, b, way) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return way * (a < b ? -1 : a > b ? 1 : 0);
  };
  const sort = (table, heading) => {
    const column = heading.cellIndex;
    const kind = heading.dataset.sort;
    const first = kind === "number" ? "descending" : "ascending";
    const other = kind === "number" ? "ascending" : "descending";
    const order = heading.getAttribute("aria-sort") === first ? other : first;
    for (const cell of all("th[aria-sort]", table)) cell.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order);
    const body = table.tBodies[0];
    const way = order === "ascending" ? 1 : -1;
    const rows = [...body.rows].filter((row) => !("pinned" in row.dataset));
    rows.sort((a, b) => compare(value(a, column, kind), value(b, column, kind), way));
    body.append(...rows);
  };
  for (const heading of all(".sortable-table th[data-sort]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sort(heading.closest("table"), heading));
    heading.append(button);
  }

  // Filtering; what is chosen stands in the address, so that a link can say it.
  const address = new URLSearchParams(location.search);
  for (const form of all("form[data-filters]")) {
    const rows = all(`#${form.dataset.filters} tbody tr`);
    const none = form.closest("section").querySelector(".none-shown");
    const selects = all("select", form);
    const apply = () => {
      const chosen = selects.filter((select) => select.value);
      for (const row of rows) {
        row.hidden = chosen.some((select) => row.dataset[select.name] !== select.value);
      }
      const shown = rows.filter((row) => !row.hidden).length;
      form.querySelector("output").textContent = `${shown} of ${rows.length} shown`;
      none.hidden = shown > 0;
    };
    for (const select of selects) {
      select.value = address.get(select.name) ?? "";
      if (select.selectedIndex < 0) select.value = "";
    }
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", () => {
      apply();
      for (const { name, value } of selects) {
        if (value) address.set(name, value);
        else address.delete(name);
      }
      const query = address.size ? `?${address}` : "";
      history.replaceState(null, "", location.pathname + query + location.hash);
    });
    apply();
  }

  // A link lands on what it names, even if that is folded away or filtered out.
  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    target.closest("details")?.setAttribute("open", "");
    if (target.hidden) {
      const form = target.closest("section").querySelector("form[data-filters]");
      for (const select of all("select", form)) select.value = "";
      form.dispatchEvent(new Event("change"));
    }
    target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  addEventListener("load", reveal);

  // What goes on to the side says so.
  const hint = (region) => {
    const rest = region.scrollWidth - region.clientWidth - region.scrollLeft;
    region.classList.toggle("more", rest > 1);
  };
  const sizes = new ResizeObserver((entries) => entries.forEach(({ target }) => hint(target)));
  addEventListener("load", () => {
    for (const region of all(".scroll")) {
      sizes.observe(region);
      region.addEventListener("scroll", () => hint(region), { passive: true });
    }
  });

  // Paper has nothing to unfold; what would only fill it stays folded, and a line says so.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = all("details:not([open], .not-on-paper)");
    for (const element of folded) element.open = true;
  });
  addEventListener("afterprint", () => {
    for (const element of folded) element.open = false;
  });
})();
