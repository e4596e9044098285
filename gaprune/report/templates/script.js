"use strict";
(() => {
  const root = document.documentElement, tip = document.querySelector(".tip");
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const pressed = (button) => button.getAttribute("aria-pressed") === "true";
  const press = (button, on) => button.setAttribute("aria-pressed", String(on));

  // The reader chooses the theme; pages opened from a disk may have no storage.
  const themes = ["auto", "light", "dark"], button = document.querySelector("[data-theme-switch]");
  const remembered = (value) => {
    try {
      if (value === undefined) return localStorage.getItem("gaprune-theme");
      localStorage.setItem("gaprune-theme", value);
    } catch { /* The choice then lasts for this visit. */ }
    return null;
  };
  const apply = (theme) => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    button.querySelector("span").textContent = theme;
  };
  let theme = themes.includes(remembered()) ? remembered() : "auto";
  apply(theme);
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    apply(theme);
    remembered(theme);
  });

  // Copying selects the code first: where there is no clipboard, the reader presses Ctrl-C.
  for (const copy of all("[data-copy]")) {
    const code = copy.closest(".step").querySelector("code");
    copy.hidden = false;
    copy.addEventListener("click", async () => {
      getSelection().selectAllChildren(code);
      let done = false;
      try {
        await navigator.clipboard.writeText(code.textContent);
        done = true;
      } catch { done = document.execCommand("copy"); }
      copy.textContent = done ? "Copied" : "Selected";
      setTimeout(() => { copy.textContent = "Copy"; }, 2000);
    });
  }

  // A link to a folded section opens it.
  const unfold = () => {
    const details = document.querySelector(`${location.hash || "#none"} > details`);
    if (details) details.open = true;
  };
  addEventListener("hashchange", unfold);
  unfold();

  // The reader chooses the x axis of the charts of a search.
  for (const choice of all(".choice")) {
    const buttons = all("[data-show]", choice);
    choice.addEventListener("click", (event) => {
      const chosen = event.target.closest("[data-show]");
      if (!chosen) return;
      for (const button of buttons) press(button, button === chosen);
      for (const panel of all("[data-panel]", choice.parentElement))
        panel.hidden = panel.dataset.panel !== chosen.dataset.show;
    });
  }

  const hide = () => {
    tip.hidden = true;
    for (const point of all(".pt.here")) point.classList.remove("here");
  };
  const show = (point) => {
    hide();
    point.classList.add("here");
    tip.textContent = point.getAttribute("aria-label");
    tip.hidden = false;
    const at = point.getBoundingClientRect(), box = tip.getBoundingClientRect();
    const left = at.left + at.width / 2 - box.width / 2;
    const above = at.top - box.height - 8;
    tip.style.left = `${Math.max(8, Math.min(left, innerWidth - box.width - 8))}px`;
    tip.style.top = `${above > 4 ? above : at.bottom + 8}px`;
  };

  for (const plot of all("[data-plot]")) {
    const keys = all("[data-key]", plot), everything = plot.querySelector("[data-all]");
    const points = all(".pt", plot);
    const visible = () => points.filter((point) => !point.closest(".off"));
    const row = (point) => Number(point.dataset.row);
    const position = (point) => point.x.baseVal.valueInSpecifiedUnits;
    const enter = (entry) => { // All points together are one stop of the Tab key.
      for (const point of points) point.setAttribute("tabindex", point === entry ? "0" : "-1");
    };
    const update = () => {
      for (const key of keys)
        for (const series of all(`[data-series="${key.dataset.key}"]`, plot))
          series.classList.toggle("off", !pressed(key));
      if (everything) everything.textContent = keys.every(pressed) ? "show none" : "show all";
      enter(visible()[0]);
      hide();
    };
    plot.addEventListener("click", (event) => {
      const key = event.target.closest("[data-key]");
      if (key) press(key, !pressed(key));
      else if (event.target.closest("[data-all]")) {
        const on = !keys.every(pressed);
        for (const key of keys) press(key, on);
      } else return;
      update();
    });
    const step = (from, key) => {
      const candidates = visible(), same = candidates.filter((point) => row(point) === row(from));
      same.sort((a, b) => position(a) - position(b));
      const index = same.indexOf(from);
      if (key === "ArrowLeft") return same[index - 1];
      if (key === "ArrowRight") return same[index + 1];
      if (key === "Home") return same[0];
      if (key === "End") return same.at(-1);
      const rows = [...new Set(candidates.map(row))].sort((a, b) => a - b);
      const next = rows[rows.indexOf(row(from)) + (key === "ArrowDown" ? 1 : -1)];
      const away = (point) => Math.abs(position(point) - position(from));
      return candidates.filter((point) => row(point) === next).sort((a, b) => away(a) - away(b))[0];
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
    const near = (event) => { // The nearest point within 26 pixels is the target.
      let best = null, least = 26;
      for (const point of visible()) {
        const box = point.getBoundingClientRect();
        const away = Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
        if (away < least) [best, least] = [point, away];
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

  // Nothing can be opened on paper, so open what is to be printed.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details[data-print]:not([open])");
    for (const details of closed) details.open = true;
  });
  addEventListener("afterprint", () => { for (const details of closed) details.open = false; });
})();
