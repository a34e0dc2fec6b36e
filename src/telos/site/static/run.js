"use strict";
// Runs a check from a paper's page: starts it, follows its events, cancels it, shows its result beside the recorded one.
(() => {
  const runner = document.getElementById("runner");
  if (!runner) return;
  const { slug, token, runs } = runner.dataset;
  const panel = document.getElementById("progress");
  const outcome = document.getElementById("outcome");
  const buttons = [...runner.querySelectorAll("form.start button")];
  const ended = ["done", "failed", "cancelled", "lost"];
  let stream = null;

  function make(tag, text = "", properties = {}) {
    return Object.assign(document.createElement(tag), text ? { textContent: text } : {}, properties);
  }

  async function ask(path, options = {}) {
    const answer = await fetch(path, { ...options, headers: { Accept: "application/json", ...options.headers } });
    const value = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
    if (!answer.ok) throw new Error(value.error || `the server answered ${answer.status}`);
    return value;
  }

  const post = (path, fields) => ask(path, { method: "POST", body: new URLSearchParams({ token, ...fields }) });

  function busy(yes) {
    for (const button of buttons) button.disabled = yes;
  }

  function say(text) {
    panel.hidden = false;
    panel.replaceChildren(make("p", text));
  }

  function board(job) {
    panel.hidden = false;
    const head = make("p");
    const state = make("strong", `${job.mode} check, ${job.scale} scale: ${job.state}`);
    const cancel = make("button", "Cancel", { type: "button" });
    cancel.addEventListener("click", async () => {
      cancel.disabled = true;
      try { await post(`${runs}/${job.id}/cancel`, {}); } catch (error) { state.textContent = error.message; }
    });
    head.append(state, cancel);
    const bar = make("progress", "", { max: 1, value: 0 });
    bar.setAttribute("aria-label", "Runs finished");
    const line = make("p", job.state === "waiting" ? "Waiting for the check that runs now, or for this one to begin." : "Starting.");
    const table = make("table");
    const rows = new Map();
    const header = table.createTHead().insertRow();
    for (const name of ["Arm", "Seeds", "Last measured"]) header.append(make("th", name, { scope: "col" }));
    const body = table.createTBody();
    table.hidden = true;
    panel.replaceChildren(head, bar, line, table);

    function row(arm, label) {
      if (!rows.has(arm)) {
        const inserted = body.insertRow();
        inserted.append(make("th", label, { scope: "row" }), make("td", "0"), make("td"));
        rows.set(arm, { cells: inserted.cells, seeds: 0 });
        table.hidden = false;
      }
      return rows.get(arm);
    }

    return {
      event(event) {
        if (event.event === "resumed" || event.event === "start") {
          rows.clear();
          body.replaceChildren();
          state.textContent = `${job.mode} check, ${job.scale} scale: running`;
          line.textContent = event.event === "resumed" ? "Resumed after the server was started again." : `${event.runs} runs.`;
          for (const [arm, label] of Object.entries(event.arms || {})) row(arm, label);
        } else if (event.event === "run") {
          const entry = row(event.arm, event.label);
          entry.seeds += 1;
          entry.cells[1].textContent = entry.seeds;
          entry.cells[2].textContent = Object.entries(event.measures).slice(0, 3)
            .map(([name, value]) => `${name} ${Number(value.toPrecision(4))}`).join(", ");
          bar.max = event.total;
          bar.value = event.done;
          const left = event.done < event.total ? `, about ${Math.round(event.left)} s left` : "";
          line.textContent = `${event.done} of ${event.total} runs${left}.`;
        } else if (event.event === "verdict") {
          line.textContent = `Verdict: ${event.verdict}.`;
        } else if (event.event === "failed") {
          line.textContent = event.message;
        }
      },
      finish(last) {
        state.textContent = `${last.mode} check, ${last.scale} scale: ${last.state}`;
        cancel.remove();
        if (last.state !== "done" && last.message) line.textContent = last.message;
      },
      trouble() { line.textContent = "The server does not answer; trying again."; },
    };
  }

  async function view(job) {
    const answer = await fetch(`${runs}/${job.id}/view`);
    if (answer.ok) outcome.innerHTML = await answer.text();
  }

  function follow(job) {
    if (stream) stream.close();
    busy(true);
    outcome.replaceChildren();
    const shown = board(job);
    stream = new EventSource(`${runs}/${job.id}/events`);
    stream.onmessage = (message) => shown.event(JSON.parse(message.data));
    stream.addEventListener("end", async (message) => {
      stream.close();
      busy(false);
      const last = JSON.parse(message.data);
      shown.finish(last);
      if (last.state === "done") await view(last);
    });
    stream.onerror = () => shown.trouble();
  }

  runner.addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = event.target;
    busy(true);
    try {
      follow(await post(runs, { slug, scale: form.elements.scale.value, mode: event.submitter.value }));
    } catch (error) {
      busy(false);
      say(error.message);
    }
  });

  (async () => {
    try {
      const { runs: jobs } = await ask(`${runs}?slug=${encodeURIComponent(slug)}`);
      const job = jobs.find((each) => !ended.includes(each.state)) || jobs[0];
      if (!job) return;
      if (!ended.includes(job.state)) follow(job);
      else if (job.state === "done") await view(job);
    } catch { /* a page without runs is a page still */ }
  })();
})();
