// Runs before anything is drawn, so that a chosen theme does not flash in late.
(() => {
  let theme = null;
  try {
    theme = localStorage.getItem("glm3.theme");
  } catch {
    // A browser that keeps nothing has the system's theme.
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
