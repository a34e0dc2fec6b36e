"use strict";
// Which methods stand side by side, and where their equations and defaults differ. The address holds the choice.
(() => {
  const form = document.getElementById("pick");
  const table = document.getElementById("compare");
  const told = document.getElementById("told");
  const least = 2;
  const most = 6;
  const boxes = form ? [...form.querySelectorAll("input")] : [];
  const known = boxes.map((box) => box.value);
  const start = boxes.filter((box) => box.checked).map((box) => box.value);
  // The order in which they were asked for: the first is what the others are compared with.
  let chosen = [];
  const leaves = (cell) => [...cell.querySelectorAll("mi, mn, mo, mtext")];

  // The longest common subsequence of two lists of symbols; gives the indices in `b` that belong to it.
  function common(a, b) {
    const table = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
    for (let i = a.length - 1; i >= 0; i--) {
      for (let j = b.length - 1; j >= 0; j--) {
        table[i][j] = a[i] === b[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
      }
    }
    const kept = new Set();
    for (let i = 0, j = 0; i < a.length && j < b.length;) {
      if (a[i] === b[j]) { kept.add(j); i++; j++; } else if (table[i + 1][j] >= table[i][j + 1]) i++; else j++;
    }
    return kept;
  }

  // How much of two equations is common, from 0 to 1: each is compared with the one of the first method most like it.
  const likeness = ({ kept, size }, texts) => (2 * kept.size) / (size + texts.length);

  function mark(slugs) {
    for (const element of table.querySelectorAll(".differs")) element.classList.remove("differs");
    const rows = [...table.querySelectorAll("tbody tr")];
    for (const row of rows) {
      const here = slugs.map((slug) => row.querySelector(`td[data-method="${CSS.escape(slug)}"]`)).filter(Boolean);
      if (here.length < least) continue;
      if (row.closest(".defaults")) {
        const codes = here.map((cell) => cell.querySelector("code")).filter(Boolean);
        if (new Set(codes.map((code) => code.textContent)).size > 1) codes.forEach((code) => code.classList.add("differs"));
        row.hidden = codes.length === 0;
      } else if (here.some((cell) => cell.querySelector("math"))) {
        const first = [...here[0].querySelectorAll("math")].map((math) => leaves(math).map((leaf) => leaf.textContent));
        for (const math of here.slice(1).flatMap((cell) => [...cell.querySelectorAll("math")])) {
          const symbols = leaves(math);
          const texts = symbols.map((leaf) => leaf.textContent);
          const same = first.map((each) => ({ kept: common(each, texts), size: each.length }))
            .reduce((best, each) => (likeness(each, texts) > likeness(best, texts) ? each : best), { kept: new Set(), size: 0 });
          symbols.forEach((leaf, index) => { if (!same.kept.has(index)) leaf.classList.add("differs"); });
        }
      }
    }
  }

  function show() {
    const order = [...chosen, ...known.filter((slug) => !chosen.includes(slug))];
    for (const row of table.rows) {
      const cells = new Map([...row.querySelectorAll("[data-method]")].map((cell) => [cell.dataset.method, cell]));
      if (cells.size) row.append(...order.map((slug) => cells.get(slug)));
      for (const [slug, cell] of cells) cell.hidden = !chosen.includes(slug);
    }
    for (const box of boxes) {
      box.checked = chosen.includes(box.value);
      box.disabled = !box.checked && chosen.length >= most;
    }
    told.textContent = chosen.length < least ? "Choose at least two." : chosen.length >= most ? "Six at most." : "";
    mark(chosen);
  }

  function restore() {
    const asked = new URLSearchParams(location.search);
    const named = [...asked.getAll("m"), ...(asked.get("methods") || "").split(",")].filter((slug) => known.includes(slug));
    chosen = named.length ? [...new Set(named)].slice(0, most) : start;
    show();
  }

  if (!form) return;
  form.addEventListener("change", ({ target }) => {
    chosen = target.checked ? [...chosen, target.value] : chosen.filter((slug) => slug !== target.value);
    history.pushState(null, "", `?methods=${chosen.join(",")}`);
    show();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("popstate", restore);
  restore();
})();
