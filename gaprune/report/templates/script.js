"use strict";
(() => {
  const root = document.documentElement, tip = document.querySelector(".tip");
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const pressed = (button) => button.getAttribute("aria-pressed") === "true";
  const press = (button, on) => button.setAttribute("aria-pressed", String(on));

  // the reader's choice of colours; pages opened from a disk may have no storage
  const themes = ["auto", "light", "dark"], button = document.querySelector("[data-theme-switch]");
  const remembered = (value) => {
    try {
      if (value === undefined) return localStorage.getItem("gaprune-theme");
      localStorage.setItem("gaprune-theme", value);
    } catch { /* it is for this visit only */ }
    return null;
  };
  const wear = (theme) => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    button.querySelector("span").textContent = theme;
  };
  let theme = themes.includes(remembered()) ? remembered() : "auto";
  wear(theme);
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    wear(theme);
    remembered(theme);
  });

  // one thing of several: what a chart is drawn against
  for (const choice of all(".choice")) {
    const buttons = all("[data-show]", choice);
    choice.addEventListener("click", (event) => {
      const chosen = event.target.closest("[data-show]");
      if (!chosen) return;
      for (const one of buttons) press(one, one === chosen);
      for (const panel of all("[data-panel]", choice.parentElement))
        panel.hidden = panel.dataset.panel !== chosen.dataset.show;
    });
  }

  const hide = () => {
    tip.hidden = true;
    for (const one of all(".pt.here")) one.classList.remove("here");
  };
  const show = (point) => {
    hide();
    point.classList.add("here");
    tip.textContent = point.getAttribute("aria-label");
    tip.hidden = false;
    const at = point.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const left = at.left + at.width / 2 - own.width / 2;
    const above = at.top - own.height - 8;
    tip.style.left = `${Math.max(8, Math.min(left, innerWidth - own.width - 8))}px`;
    tip.style.top = `${above > 4 ? above : at.bottom + 8}px`;
  };

  for (const plot of all("[data-plot]")) {
    const keys = all("[data-key]", plot), everything = plot.querySelector("[data-all]");
    const points = all(".pt", plot);
    const there = () => points.filter((one) => !one.closest(".off"));
    const row = (one) => Number(one.dataset.row);
    const place = (one) => one.x.baseVal.valueInSpecifiedUnits;
    const enter = (point) => { // one stop of the Tab key for all points
      for (const one of points) one.setAttribute("tabindex", one === point ? "0" : "-1");
    };
    const update = () => {
      for (const key of keys)
        for (const one of all(`[data-series="${key.dataset.key}"]`, plot))
          one.classList.toggle("off", !pressed(key));
      if (everything) everything.textContent = keys.every(pressed) ? "show none" : "show all";
      enter(there()[0]);
      hide();
    };
    plot.addEventListener("click", (event) => {
      const key = event.target.closest("[data-key]");
      if (key) press(key, !pressed(key));
      else if (event.target.closest("[data-all]")) {
        const on = !keys.every(pressed);
        for (const one of keys) press(one, on);
      } else return;
      update();
    });
    const step = (from, key) => {
      const shown = there(), own = shown.filter((one) => row(one) === row(from));
      own.sort((one, other) => place(one) - place(other));
      const index = own.indexOf(from);
      if (key === "ArrowLeft") return own[index - 1];
      if (key === "ArrowRight") return own[index + 1];
      if (key === "Home") return own[0];
      if (key === "End") return own.at(-1);
      const rows = [...new Set(shown.map(row))].sort((one, other) => one - other);
      const next = rows[rows.indexOf(row(from)) + (key === "ArrowDown" ? 1 : -1)];
      const away = (one) => Math.abs(place(one) - place(from));
      return shown.filter((one) => row(one) === next).sort((a, b) => away(a) - away(b))[0];
    };
    plot.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return hide();
      if (!event.target.classList.contains("pt")) return;
      if (!/^(Arrow(Left|Right|Up|Down)|Home|End)$/.test(event.key)) return;
      event.preventDefault();
      const next = step(event.target, event.key);
      if (!next) return;
      enter(next);
      next.focus();
    });
    plot.addEventListener("focusin", (event) => {
      if (event.target.classList.contains("pt")) show(event.target);
    });
    plot.addEventListener("focusout", hide);
    const near = (event) => { // what is pointed at need not be hit exactly
      let best = null, least = 26;
      for (const one of there()) {
        const box = one.getBoundingClientRect();
        const away = Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
        if (away < least) [best, least] = [one, away];
      }
      if (best) show(best); else hide();
    };
    for (const area of all(".area, .rows", plot)) {
      area.addEventListener("pointermove", near);
      area.addEventListener("pointerdown", near);
      area.addEventListener("pointerleave", hide);
    }
    if (points.length) update();
  }
  addEventListener("scroll", hide, { passive: true });

  // on paper nothing can be opened; tables that repeat a chart stay away
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details[data-print]:not([open])");
    for (const one of closed) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of closed) one.open = false; });
})();
