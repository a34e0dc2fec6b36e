"use strict";
// Loaded before the page is drawn, so that a chosen theme does not flash.
(() => {
  const names = ["system", "light", "dark"];
  const root = document.documentElement;
  let stored = "system";
  try { stored = localStorage.getItem("telos-theme") || "system"; } catch { /* storage may be refused */ }
  const apply = (name) => {
    if (name === "system") delete root.dataset.theme; else root.dataset.theme = name;
  };
  if (!names.includes(stored)) stored = "system";
  apply(stored);
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const label = () => { button.textContent = `Theme: ${stored}`; };
    button.hidden = false;
    label();
    button.addEventListener("click", () => {
      stored = names[(names.indexOf(stored) + 1) % names.length];
      apply(stored);
      label();
      try { localStorage.setItem("telos-theme", stored); } catch { /* as above */ }
    });
  });
})();
