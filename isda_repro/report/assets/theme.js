// Light, dark, or as the system has it; kept in this browser where it lets us.
"use strict";
const THEMES = ["auto", "light", "dark"];
const SYSTEM = matchMedia("(prefers-color-scheme: dark)");

function storedTheme() {
  try {
    return localStorage.getItem("theme") || "auto";
  } catch {
    return "auto"; // some browsers keep nothing for files
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
