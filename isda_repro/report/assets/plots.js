// Plotly traces and layout of one panel.
"use strict";
// Lines differ in colour, dashes and markers, as in the figures of results/. The colours are defined in style.css.
// There are 5 dashes, 7 markers and 6 colours. The numbers have no common divisor, so combinations do not repeat early.
const DASHES = ["5px,2px", "solid", "1px,2px", "6px,2px,1px,2px", "9px,3px"];
const MARKS = [
  "circle-open",
  "square-open",
  "triangle-up-open",
  "diamond-open",
  "triangle-down-open",
  "cross-open",
  "x-thin-open",
];
const COLOURS = 6;
const TICKS = [-3, -2, -1, 0, 1, 2, 3].flatMap((power) => [1, 2, 5].map((digit) => Number(`${digit}e${power}`)));
const MORE_TICKS = [0.3, 0.7, 1.5, 3, 4, 7, 15, 30, 40, 60, 70, 80]; // where the axis spans less than a factor of 8
const NAMES = {
  test_error: "error",
  train_error: "training error",
  test_loss: "loss",
  train_loss: "training loss",
  "covariances/ratio": "ISDA's added term / margin",
  "covariances/added": "ISDA's added term",
  "covariances/margin": "margin of the class means",
  "covariances/trace": "trace of the covariances",
  "covariances/effective_rank": "effective rank of the covariances",
};

function colourOf(look) {
  return getComputedStyle(document.documentElement)
    .getPropertyValue(`--line-${look % COLOURS}`)
    .trim();
}

function isError(curve) {
  return curve.endsWith("error");
}

// The mean, smallest and largest value of a curve at each epoch, over the runs of a line that have the curve.
function bandOf(data, runs, curve) {
  const having = runs.map((number) => data.runs[number]).filter((run) => run.curves[curve]);
  if (!having.length) return null;
  const all = having.map((run) => run.curves[curve]);
  const shortest = having.reduce((a, b) => (b.curves[curve].length < a.curves[curve].length ? b : a));
  const at = (combine) => shortest.curves[curve].map((_, index) => combine(all.map((values) => values[index])));
  return {
    epochs: data.epochs[shortest.epochs],
    runs: having,
    mean: at((values) => values.reduce((sum, value) => sum + value, 0) / values.length),
    low: at((values) => Math.min(...values)),
    high: at((values) => Math.max(...values)),
  };
}

function bandTraces(band, drawn, colour) {
  const edge = {
    x: band.epochs,
    mode: "lines",
    line: { width: 0, color: colour },
    hoverinfo: "skip",
    showlegend: false,
  };
  return [
    { ...edge, y: band.low.map(drawn) },
    { ...edge, y: band.high.map(drawn), fill: "tonexty", fillcolor: `${colour}28` },
  ];
}

function seedTraces(band, drawn, curve, colour) {
  return band.runs.map((run) => ({
    x: band.epochs,
    y: run.curves[curve].map(drawn),
    mode: "lines",
    line: { width: 0.9, color: colour },
    opacity: 0.55,
    name: `seed ${run.seed}`,
    meta: run.id,
    hovertemplate: `seed ${run.seed}, epoch %{x}: %{y:.4g}<extra></extra>`,
  }));
}

function meanTrace(line, band, drawn, curve, digits) {
  const spread = band.mean.map((mean, index) => {
    const range =
      band.runs.length > 1 ? ` (${band.low[index].toFixed(digits)}–${band.high[index].toFixed(digits)})` : "";
    return `${mean.toFixed(digits)}${isError(curve) ? "%" : ""}${range}`;
  });
  return {
    x: band.epochs,
    y: band.mean.map(drawn),
    customdata: spread,
    mode: "lines+markers",
    line: { width: 1.8, color: colourOf(line.look), dash: DASHES[line.look % DASHES.length] },
    marker: { symbol: MARKS[line.look % MARKS.length], size: 6, maxdisplayed: 9, color: colourOf(line.look) },
    name: escaped(line.label),
    meta: line.key,
    hovertemplate: "%{customdata}",
  };
}

// Escape text from files, because plotly interprets some HTML tags.
function escaped(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function tracesOf(data, panel, lines, options) {
  const digits = isError(options.curve) ? 2 : 3;
  const floor = isError(options.curve) ? panel.floor : options.curve.startsWith("covariances/") ? 1e-3 : 1e-6;
  const drawn = options.axis === "log" ? (value) => Math.max(value, floor) : (value) => value;
  return lines.flatMap((line) => {
    const band = bandOf(data, line.runs, options.curve);
    if (!band) return [];
    const colour = colourOf(line.look);
    const several = band.runs.length > 1;
    return [
      ...(several && options.seeds === "band" ? bandTraces(band, drawn, colour) : []),
      ...(several && options.seeds === "lines" ? seedTraces(band, drawn, options.curve, colour) : []),
      meanTrace(line, band, drawn, options.curve, digits),
    ];
  });
}

function verticalAxis(traces, options, ink) {
  const values = traces.flatMap((trace) => trace.y);
  const [low, high] = values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
  const axis = { gridcolor: ink.rule, zeroline: false, fixedrange: false, tickfont: { size: 11 } };
  if (options.axis !== "log") return { ...axis, rangemode: "tozero" };
  const sparse = high > 1000 * low ? TICKS.filter((_, index) => index % 3 === 0) : TICKS;
  const ticks = high > 8 * low ? sparse : [...TICKS, ...MORE_TICKS];
  const top = Math.min(Math.max(high, 1.5 * low) * 1.1, isError(options.curve) ? 100 : Infinity); // no error above 100%
  return {
    ...axis,
    type: "log",
    range: [Math.log10(Math.min(low * 0.9, top / 1.8)), Math.log10(top)],
    tickvals: ticks,
    ticktext: ticks.map(String),
  };
}

function layoutOf(panel, traces, options) {
  const style = getComputedStyle(document.documentElement);
  const ink = { text: style.getPropertyValue("--soft").trim(), rule: style.getPropertyValue("--hair").trim() };
  const paper = style.getPropertyValue("--paper").trim();
  const where = options.curve.startsWith("test") ? `${panel.on} ` : "";
  return {
    width: options.width,
    height: options.height,
    margin: { l: 44, r: 10, t: 24, b: 38 },
    showlegend: false,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: style.getPropertyValue("--sans").trim(), size: 12, color: ink.text },
    hovermode: options.seeds === "lines" ? "closest" : "x unified",
    hoverlabel: {
      bgcolor: paper,
      bordercolor: ink.rule,
      font: { size: 12, color: style.getPropertyValue("--ink").trim() },
    },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: ink.text, activecolor: style.getPropertyValue("--accent").trim() },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // on a touch screen, dragging scrolls the page
    xaxis: {
      title: { text: "epoch", standoff: 6, font: { size: 11 } },
      showgrid: false,
      zeroline: false,
      showline: true,
      linecolor: ink.text,
      ticks: "outside",
      tickcolor: ink.text,
      tickfont: { size: 11 },
      nticks: 8,
      unifiedhovertitle: { text: "epoch %{x}" },
      spikecolor: ink.text,
      spikethickness: 1,
      spikedash: "solid",
    },
    yaxis: verticalAxis(traces, options, ink),
    shapes: panel.drops.map((epoch) => ({
      type: "line",
      x0: epoch - 0.5,
      x1: epoch - 0.5,
      yref: "paper",
      y0: 0,
      y1: 1,
      layer: "below",
      line: { color: ink.text, width: 1, dash: "1px,3px" },
    })),
    annotations: [
      {
        text: options.title ?? `${where}${NAMES[options.curve]}${isError(options.curve) ? " (%)" : ""}`,
        xref: "paper",
        yref: "paper",
        x: 0,
        y: 1,
        xanchor: "left",
        yanchor: "bottom",
        showarrow: false,
        xshift: -36,
        yshift: 6,
        font: { size: 11 },
      },
    ],
  };
}

const CONFIG = {
  displaylogo: false,
  responsive: true,
  modeBarButtons: [["toImage", "resetScale2d"]], // plotly's default buttons would send the chart away
  plotlyServerURL: "",
};

async function draw(place, data, panel, lines, options) {
  const Plotly = await plotly();
  const traces = tracesOf(data, panel, lines, options);
  if (!place.isConnected) return; // it was replaced by other panels in the meantime
  await Plotly.react(place, traces, layoutOf(panel, traces, options), CONFIG);
  place.removeAllListeners("plotly_click");
  place.on("plotly_click", (event) => {
    const target = event.points[0]?.data.meta;
    if (target) location.hash = encodeURIComponent(target);
  });
}
