// Colour theme: light, dark, or that of the system. The choice is stored in the browser if it permits that.
"use strict";
const THEMES = ["auto", "light", "dark"];
const SYSTEM = matchMedia("(prefers-color-scheme: dark)");

function storedTheme() {
  try {
    return localStorage.getItem("theme") || "auto";
  } catch {
    return "auto"; // some browsers have no storage for local files
  }
}

function setTheme(theme) {
  const ofSystem = SYSTEM.matches ? "dark" : "light";
  document.documentElement.dataset.theme = theme === "auto" ? ofSystem : theme;
}

function nextTheme(theme) {
  return THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
}

setTheme(storedTheme());
