// Compressed contents of the page (the runs as JSON, the plotting library as a script), and helpers for all scripts.
"use strict";

async function unpacked(id) {
  const text = document.getElementById(id).textContent;
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

let library = null; // a promise: unpacked once, when the first curve comes into view

function plotly() {
  library ??= unpacked("library").then((text) => {
    const script = document.createElement("script");
    script.textContent = text;
    document.head.append(script);
    return window.Plotly;
  });
  return library;
}

// Create an element with attributes and children. Strings become text nodes, never HTML.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const grouped = new Intl.NumberFormat("en");

function plural(count, one, many = `${one}s`) {
  return `${grouped.format(count)} ${count === 1 ? one : many}`;
}
