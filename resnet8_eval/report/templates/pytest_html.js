// pytest-html's page: put its parts below ours, and give them names, a keyboard and a phone.
document.addEventListener("DOMContentLoaded", () => {
  "use strict";
  const byId = (id) => document.getElementById(id);
  const make = (name, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };
  document.documentElement.lang = "en";
  if (document.querySelector(".report.standin")) document.title = `STAND-IN: ${document.title}`;

  // What decides comes first; who ran it, and with which plugins, comes last.
  const report = document.querySelector(".report");
  const controls = document.querySelector(".controls");
  const results = make("div", { className: "scroll", tabIndex: 0 });
  results.setAttribute("role", "region");
  results.setAttribute("aria-label", "Table of tests");
  const generated = document.querySelector("body > p");
  const session = make("details", {}, make("summary", { textContent: "Test session" }));
  const tests = make(
    "section",
    {},
    make("h2", { id: "tests", textContent: "Tests" }),
    document.querySelector(".run-count"),
    make("div", { id: "tests-controls" }, controls),
    results,
    session,
    generated,
  );
  tests.setAttribute("aria-labelledby", "tests");
  const summary = document.querySelector("body > .summary");
  results.append(byId("results-table"));
  for (const list of document.querySelectorAll("#environment ul ul:empty")) list.remove();
  session.append(byId("environment"));
  byId("environment-header").hidden = true;
  const main = make("main", {}, byId("title"), report, tests, ...document.querySelectorAll(
    ".additional-summary.summary > *, .additional-summary.postfix > *",
  ));
  document.body.prepend(main);
  summary.hidden = true;

  // A name for every check box.
  for (const box of document.querySelectorAll("input.filter")) {
    const text = box.nextElementSibling;
    const label = make("label");
    box.replaceWith(label);
    label.append(box, text);
    text.textContent = text.textContent.replace(/,\s*$/, "");
    if (box.disabled && text.textContent.startsWith("0 ")) label.hidden = true;
  }

  // Buttons where pytest-html listens to clicks on cells. It redraws its table at every click.
  const wrap = (cell, data) => {
    if (cell.querySelector("button")) return;
    const button = make("button", { type: "button" }, ...cell.childNodes);
    Object.assign(button.dataset, data);
    cell.append(button);
  };
  let focused = null;
  const dress = () => {
    for (const heading of document.querySelectorAll("#results-table th")) {
      heading.scope = "col";
      if (!heading.classList.contains("sortable")) continue;
      wrap(heading, { columnType: heading.dataset.columnType });
      const [up, down] = ["asc", "desc"].map((name) => heading.classList.contains(name));
      if (up || down) heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      else heading.removeAttribute("aria-sort");
    }
    for (const cell of document.querySelectorAll("#results-table .col-result")) {
      cell.dataset.id = cell.parentElement.dataset.id;
      wrap(cell, {});
      const button = cell.querySelector("button");
      button.setAttribute("aria-expanded", String(!cell.classList.contains("collapsed")));
    }
    for (const image of document.querySelectorAll("#results-table img:not([alt])")) image.alt = "";
    for (const log of document.querySelectorAll("#results-table .logwrapper")) {
      log.tabIndex = 0;
      log.setAttribute("role", "region");
      log.setAttribute("aria-label", `Log of ${log.closest("tbody").id}`);
    }
    if (focused && !document.contains(focused.button)) {
      document.querySelector(`[data-id="${focused.id}"] .col-result button`)?.focus();
    } else if (focused && document.activeElement === document.body) {
      focused.button.focus();
    }
    focused = null;
  };
  results.addEventListener(
    "click",
    ({ target }) => {
      const button = target.closest("button");
      focused = button && { button, id: button.parentElement.dataset.id };
    },
    true,
  );
  new MutationObserver(dress).observe(results, { childList: true });
  dress();

  // From a requirement to the row of its test; one that failed before its call has a longer name.
  for (const link of document.querySelectorAll("a[data-test]")) {
    link.addEventListener("click", (event) => {
      const name = link.dataset.test;
      const row = [...document.querySelectorAll("#results-table tbody")].find(
        ({ id }) => id === name || id.startsWith(`${name}::`),
      );
      if (!row) return;
      event.preventDefault();
      row.scrollIntoView({ block: "center" });
      row.querySelector(".col-result button")?.focus({ preventScroll: true });
    });
  }
});
