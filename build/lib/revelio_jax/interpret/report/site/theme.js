// Light or dark as it was chosen, before anything is drawn; as the system has it where nothing was.
"use strict";

const THEMES = ["system", "light", "dark"];

function chosenTheme() {
  try {
    const theme = localStorage.getItem("revelio_jax.theme");
    return THEMES.includes(theme) ? theme : "system";
  } catch {
    return "system"; // some browsers keep nothing for pages from disk
  }
}

function chooseTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("revelio_jax.theme", theme);
  } catch {
    // then it holds for this page
  }
}

document.documentElement.dataset.theme = chosenTheme();
