// Applies the chosen theme, or the system theme, before the page is drawn.
"use strict";

const THEMES = ["system", "light", "dark"];

function chosenTheme() {
  try {
    const theme = localStorage.getItem("revelio_jax.theme");
    return THEMES.includes(theme) ? theme : "system";
  } catch {
    return "system"; // some browsers have no storage for pages from disk
  }
}

function chooseTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("revelio_jax.theme", theme);
  } catch {
    // the choice then holds for this page only
  }
}

document.documentElement.dataset.theme = chosenTheme();
