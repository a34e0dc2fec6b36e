"use strict";
// Search, filters and order of the feed. The address holds the state, so a view can be linked to and gone back to.
(() => {
  const form = document.getElementById("filters");
  const list = document.getElementById("cards");
  const count = document.getElementById("count");
  const none = document.getElementById("none");
  const clear = document.getElementById("clear");
  const familyLink = document.getElementById("family-link");
  const compareIndex = familyLink.getAttribute("href");
  const facets = ["verdict", "family", "purpose", "product", "data", "cost"];
  const names = ["q", ...facets, "sort"];
  const cards = [...list.children].map((element) => ({
    element,
    text: `${element.textContent} ${element.dataset.slug} ${element.dataset.terms || ""}`.toLowerCase(),
    values: Object.fromEntries(facets.map((name) => [name, element.dataset[name].split("|")])),
    name: element.querySelector("h2").textContent.trim().toLowerCase(),
  }));
  const number = (text) => (text === "" ? -Infinity : Number(text));
  const orders = {
    "": (a, b) => a.element.dataset.order - b.element.dataset.order,
    newest: (a, b) => b.element.dataset.newest.localeCompare(a.element.dataset.newest),
    effect: (a, b) => number(b.element.dataset.effect) - number(a.element.dataset.effect) || orders[""](a, b),
    name: (a, b) => a.name.localeCompare(b.name),
  };

  const read = () => Object.fromEntries(names.map((name) => [name, form.elements[name].value]));

  function write(state) {
    for (const name of names) {
      const control = form.elements[name];
      const wanted = state[name] || "";
      if (control instanceof RadioNodeList) {
        for (const radio of control) radio.checked = radio.value === wanted;
        if (!control.value) control[0].checked = true;
      } else {
        control.value = wanted;
        // A value that the page does not know selects nothing: back to "any".
        if (control.value !== wanted) control.value = "";
      }
    }
  }

  function show() {
    const state = read();
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const card of cards) {
      const fits = facets.every((name) => !state[name] || card.values[name].includes(state[name]))
        && words.every((word) => card.text.includes(word));
      card.element.hidden = !fits;
      shown += fits;
    }
    const order = orders[state.sort] || orders[""];
    list.append(...[...cards].sort(order).map((card) => card.element));
    count.textContent = shown === cards.length ? `${shown} papers` : `${shown} of ${cards.length} papers`;
    none.hidden = shown > 0;
    clear.hidden = names.every((name) => !state[name]);
    familyLink.hidden = !state.family;
    familyLink.href = state.family ? compareIndex.replace(/compare(\.html)?$/, `compare/${state.family}$1`) : compareIndex;
  }

  function address(state) {
    const query = new URLSearchParams(names.filter((name) => state[name]).map((name) => [name, state[name]]));
    return query.size ? `?${query}` : location.pathname;
  }

  let typing = false;
  function changed(event) {
    const state = read();
    show();
    // One entry in the history for a word that is typed, one for each choice.
    if (event && event.type === "input" && event.target.name === "q") {
      history[typing ? "replaceState" : "pushState"](null, "", address(state));
      typing = true;
    } else if (address(state) !== (location.search || location.pathname)) {
      typing = false;
      history.pushState(null, "", address(state));
    }
  }

  function restore() {
    typing = false;
    write(Object.fromEntries(new URLSearchParams(location.search)));
    show();
  }

  form.addEventListener("input", changed);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    write({});
    changed();
    form.elements.q.focus();
  });
  document.getElementById("clear2").addEventListener("click", () => form.reset());
  addEventListener("popstate", restore);
  addEventListener("keydown", (event) => {
    const writing = event.target.closest("input, select, textarea");
    if (event.key === "/" && !writing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      form.elements.q.focus();
    }
  });
  if (matchMedia("(max-width: 34rem)").matches) document.getElementById("more").open = false;
  restore();
})();
