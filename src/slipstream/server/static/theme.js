// Sets the chosen theme before the first paint. It is a classic script because a module runs too late for that.
// "system" follows prefers-color-scheme; the choice outlives the tab.
(() => {
  const KEY = "slipstream.theme";
  const ORDER = ["system", "light", "dark"];

  function read() {
    try {
      const stored = localStorage.getItem(KEY);
      return ORDER.includes(stored) ? stored : "system";
    } catch {
      return "system"; // Storage can be blocked; the page works without it.
    }
  }

  function apply(theme) {
    document.documentElement.dataset.theme = theme;
  }

  apply(read());

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const icon = button.querySelector("use");

    function show(theme) {
      const next = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length];
      button.setAttribute("aria-label", `Theme: ${theme}. Switch to ${next}.`);
      button.title = `Theme: ${theme}`;
      icon.setAttribute("href", `static/icons.svg#theme-${theme}`);
      button.dataset.next = next;
    }

    show(read());
    button.addEventListener("click", () => {
      const theme = button.dataset.next;
      apply(theme);
      show(theme);
      try {
        localStorage.setItem(KEY, theme);
      } catch {
        // The choice then lasts as long as the page.
      }
    });
  });
})();
