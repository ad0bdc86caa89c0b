// What HTML cannot do by itself: relative times, the "/" key, copying, and saying that the
// connection is lost. Everything else is htmx; without scripts the forms still work.
(() => {
  "use strict";
  const steps = [[60, 1, "second"], [3600, 60, "minute"], [86400, 3600, "hour"], [Infinity, 86400, "day"]];
  const lang = document.documentElement.lang;
  const relative = new Intl.RelativeTimeFormat(lang, { numeric: "auto", style: "short" });
  const absolute = new Intl.DateTimeFormat(lang, { dateStyle: "medium", timeStyle: "medium" });

  const words = (at, kind) => {
    const age = Math.max(0, Date.now() / 1000 - at);
    const [, size, unit] = steps.find(([limit]) => age < limit);
    const count = Math.floor(age / size);
    if (kind === "for") return new Intl.NumberFormat(lang, { style: "unit", unit, unitDisplay: "narrow" }).format(count);
    return relative.format(-count, unit);
  };
  const tell = (root) => {
    for (const time of root.querySelectorAll("time[data-at]")) {
      const at = Number(time.dataset.at);
      const text = words(at, time.dataset.kind);
      if (time.textContent !== text) time.textContent = text;
      if (!time.title) time.title = absolute.format(at * 1000);
    }
  };
  const offline = (lost) => document.body.classList.toggle("is-offline", lost);

  tell(document);
  setInterval(() => tell(document), 1000);
  document.addEventListener("htmx:afterSwap", () => tell(document));
  document.addEventListener("htmx:sseOpen", () => offline(false));
  document.addEventListener("htmx:sseError", () => offline(true));
  document.addEventListener("htmx:sendError", () => offline(true));
  document.addEventListener("htmx:afterRequest", (event) => {
    if (event.detail.successful && event.target.matches("form[data-reset]")) event.target.reset();
  });
  // A table that grows while one looks keeps so many rows, and each record once.
  document.addEventListener("htmx:sseMessage", (event) => {
    const rows = event.target.closest("[data-most]");
    if (!rows) return;
    document.getElementById("waiting")?.remove();
    const seen = new Set();
    for (const row of [...rows.rows]) {
      if (row.id && seen.has(row.id)) row.remove();
      seen.add(row.id);
    }
    while (rows.rows.length > Number(rows.dataset.most)) rows.lastElementChild.remove();
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select");
    const field = document.querySelector("[data-slash]");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && field) {
      event.preventDefault();
      field.focus();
    }
  });
})();
